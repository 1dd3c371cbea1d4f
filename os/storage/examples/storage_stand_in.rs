//! A stand-in for `/usr/bin/node` that exercises this crate on a real kernel: takes inventory, attaches the data disk,
//! makes and fills volumes, and says on the kernel log what held. For an emulator; it must never be part of an image
//! that is released.
//!
//! `storage.do=check` (the default) switches the machine off at the end; `storage.do=write` writes until the power is
//! cut; `storage.do=delete` deletes the volumes of an earlier boot;
//! `storage.do=crash` ends once in a panic and then checks.

use croft_hardware::Inventory;
use croft_init::notify::{Message, Notifier};
use croft_storage::cache::Cache;
use croft_storage::data::{Data, Medium, Options, attach};
use croft_storage::digest::Digest;
use croft_storage::documents::Documents;
use croft_storage::tools::Tools;
use croft_storage::volumes::{ContractKey, Ended, Owner, VolumeName, Volumes};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
const TENANT: Owner = Owner { uid: 1000, gid: 1000 };
const FILL: &str = "CROFT_STAND_IN_FILL";

fn main() {
    if let Ok(path) = std::env::var(FILL) {
        fill(Path::new(&path));
    }
    let notifier = Notifier::from_env().expect("a socket").expect("started by init");
    let ask = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let ask = ask
        .split_whitespace()
        .find_map(|word| word.strip_prefix("storage.do="))
        .unwrap_or("check")
        .to_owned();
    notifier.send(&Message::Alive).expect("init listens");

    let inventory = Inventory::read(Path::new("/"));
    for disk in &inventory.disks {
        println!(
            "inventory: {} {} bytes, {:?}, serial {:?}",
            disk.name, disk.size_bytes, disk.transport, disk.serial
        );
    }
    let options = Options::node(inventory.memory.total_bytes);
    let attached = attach(&inventory.disks, &options).expect("attach");
    for disk in &attached.disks {
        println!("disks: {disk}");
    }
    println!("data: {:?}", attached.data.medium);
    let volumes = Volumes::open(&attached.data, Tools::default()).expect("volumes");
    for volume in volumes.list().expect("list") {
        println!("found: {volume:?}");
    }
    if ask == "crash" && !attached.data.folder("crashed").exists() {
        fs::write(attached.data.folder("crashed"), "once").expect("write");
        panic!("the stand-in was asked to crash once");
    }
    match ask.as_str() {
        "write" => write_for_ever(&attached.data, &volumes),
        "delete" => delete(&volumes),
        _ => check(&attached.data, &volumes),
    }
    notifier.send(&Message::Poweroff("the stand-in is done".into())).expect("init listens");
    loop {
        std::thread::park();
    }
}

fn expect(what: &str, holds: bool) {
    println!("check: {what}: {}", if holds { "ok" } else { "FAILED" });
}

fn contract() -> ContractKey {
    ContractKey::new([0xc0; 32])
}

fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).expect("a valid name")
}

/// As the tenant: writes until the kernel says stop.
fn fill(path: &Path) -> ! {
    let mut file = File::create(path).expect("the tenant may write");
    let mut written = 0;
    loop {
        match file.write_all(&vec![7; MIB as usize]) {
            Ok(()) => written += 1,
            Err(error) => {
                println!("fill: stopped after {written} MiB: {error}");
                std::process::exit(if error.raw_os_error() == Some(122) { 22 } else { 23 });
            }
        }
        if written > 200 {
            std::process::exit(24);
        }
    }
}

fn check(data: &Data, volumes: &Volumes) {
    let quota = matches!(data.medium, Medium::Disk { project_quota: true, .. });
    expect("the data disk has project quota", quota);

    let image = volumes.create_exclusive(&contract(), &name("db"), 64 * MIB, TENANT).expect("exclusive");
    expect("an exclusive volume can be checked", Tools::default().check(&image).is_ok());
    let shared = volumes.create_shared(&contract(), &name("www"), 32 * MIB, TENANT).expect("shared");
    expect("a shared volume is limited", shared.limit.is_ok());
    let status = Command::new("/proc/self/exe")
        .env(FILL, shared.path.join("big"))
        .uid(TENANT.uid)
        .gid(TENANT.gid)
        .status()
        .expect("the tenant starts");
    expect("the tenant is stopped by its limit", status.code() == Some(22));
    let listed = volumes.list().expect("list");
    let www = listed.iter().find(|volume| volume.name == name("www")).expect("www");
    println!("usage: {} of {:?}", www.used_bytes, www.size_bytes);
    expect("its usage is counted", www.size_bytes == Some(32 * MIB) && www.used_bytes > 30 * MIB);
    let other = volumes.create_shared(&contract(), &name("logs"), 32 * MIB, TENANT).expect("shared");
    expect("another volume has room", fs::write(other.path.join("log"), vec![1; MIB as usize]).is_ok());

    let cache = Cache::open(&data.folder("cache"), 256 * MIB).expect("cache");
    let bytes = vec![9; 3 * MIB as usize];
    cache.put(&Digest::of(&bytes), bytes.len() as u64, &mut &bytes[..]).expect("put");
    expect("the cache gives back what it got", cache.get(&Digest::of(&bytes)).expect("get") == Some(bytes));
    let documents = Documents::open(&data.folder("contracts")).expect("documents");
    documents.put("c0", b"signed").expect("put");
    println!("check: done");
}

/// Writes numbered documents and says each number only when it is durable.
fn write_for_ever(data: &Data, volumes: &Volumes) {
    let documents = Documents::open(&data.folder("contracts")).expect("documents");
    let before = documents.get("count").expect("never damaged");
    println!("write: starts at {:?}", before.as_deref().map(String::from_utf8_lossy));
    let image = volumes.create_exclusive(&contract(), &name("db"), 64 * MIB, TENANT).expect("exclusive");
    let mut database = File::options().write(true).open(image).expect("open");
    let first: u64 = before.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok()).unwrap_or(0);
    for count in first + 1.. {
        documents.put("count", count.to_string().as_bytes()).expect("put");
        database.write_all(&count.to_le_bytes()).expect("write");
        println!("write: {count} is durable");
    }
}

fn delete(volumes: &Volumes) {
    let ended = Ended::by_ledger(contract(), 10, 20).expect("ended");
    for volume in volumes.list().expect("list") {
        volumes.delete(&volume, &ended).expect("delete");
    }
    expect("all volumes are gone", volumes.list().expect("list").is_empty());
    let again = volumes.create_shared(&contract(), &name("www"), 64 * MIB, TENANT).expect("shared");
    let fits = fs::write(again.path.join("big"), vec![1; 48 * MIB as usize]);
    expect("a number that is used again has its new limit", fits.is_ok());
}
