//! The real binary, killed while it works.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use common::{Files, within};
use croft_protocol::Hash;
use croft_protocol::boot::ReplicaAddress;
use croft_replica::store::Store;
use croft_transport::{Client, ClientError};

struct Process {
    child: Child,
    pin: ReplicaAddress,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(files: &Files) -> Process {
    let mut child = Command::new(env!("CARGO_BIN_EXE_replica"))
        .arg("--config")
        .arg(files.config_path())
        .env("CROFT_LOG", "error")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // replica <key> of grid 'test' serves on <address>
    let words: Vec<&str> = line.split_whitespace().collect();
    let (Some(key), Some(address)) = (words.get(1), words.last()) else { panic!("it said '{line}'") };
    let pin = ReplicaAddress { address: address.parse().unwrap(), key: key.parse().unwrap() };
    Process { child, pin }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_it_loses_nothing_that_it_acknowledged() {
    let files = Files::new();
    let mut acknowledged: Vec<Hash> = Vec::new();
    let mut sequence = 0;
    for round in 0..3u64 {
        let mut process = spawn(&files);
        let client = Client::new(&files.user, vec![process.pin.clone()]).unwrap();
        // What was sent last before the kill may or may not have become final: the ledger knows.
        let account = croft_protocol::StateKey::Account(files.user.public());
        let (_, values) = client.get(vec![account]).await.unwrap().value;
        let account: croft_protocol::state::Account =
            borsh::from_slice(values[0].value.as_ref().unwrap()).unwrap();
        assert!(account.next_sequence >= sequence, "acknowledged commands are gone");
        sequence = account.next_sequence;
        let (_, log) = client.range(0, 256).await.unwrap().value;
        let stored: Vec<Hash> = log.iter().map(|proved| proved.record.hash()).collect();
        assert!(acknowledged.iter().all(|record| stored.contains(record)), "acknowledged records are gone");

        let mut load = tokio::task::JoinSet::new();
        for ahead in 0..40 {
            let (client, pay) = (client.clone(), files.sign(&files.user, sequence + ahead, files.pay(1)));
            load.spawn(async move { client.submit(pay).await });
        }
        let mut answers = 0;
        while let Some(answer) = within(load.join_next()).await {
            match answer.unwrap() {
                Ok(done) => {
                    answers += 1;
                    acknowledged.extend(done.value.records);
                }
                Err(error @ ClientError::Rejected { .. }) => panic!("{error}"),
                Err(_) => {}
            }
            if answers == 5 + 10 * round {
                process.child.kill().unwrap();
                process.child.wait().unwrap();
                break;
            }
        }
        load.abort_all();
        assert!(answers > 0, "nothing was acknowledged in round {round}");
    }
    let config = files.config();
    let store = Store::open(&config.dir, &config.genesis).unwrap();
    let report = store.audit().unwrap();
    assert!(report.records >= acknowledged.len() as u64);
}

#[test]
fn a_check_of_a_whole_ledger_says_what_it_saw_and_a_missing_one_is_named() {
    let files = Files::new();
    let check = || {
        Command::new(env!("CARGO_BIN_EXE_replica"))
            .arg("--check")
            .arg("--config")
            .arg(files.config_path())
            .output()
            .unwrap()
    };
    let good = check();
    assert!(good.status.success(), "{good:?}");
    let said = String::from_utf8(good.stdout).unwrap();
    assert_eq!(said, "the ledger is whole: 1 headers, 1 lists of commands, 3 records, 6 values\n");
    std::fs::remove_file(files.dir().join("data/ledger.redb")).unwrap();
    let bad = check();
    assert_eq!(bad.status.code(), Some(1));
    let said = String::from_utf8(bad.stderr).unwrap();
    assert!(said.contains("there is no ledger at"), "{said}");
    assert!(said.contains("restore it from a copy"), "{said}");
}
