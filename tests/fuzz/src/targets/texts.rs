//! Names, ids and amounts that people type, and the files that people and machines keep.

use std::path::Path;

use croft_protocol::addition::{Addition, Expectation, Validated};
use croft_protocol::boot::{
    BootConfig, ClockSettings, FarmJoin, GridPin, LinkMode, LinkSettings, NodeSettings,
};
use croft_protocol::command::{Join, SignedJoin};
use croft_protocol::keys::Domain;
use croft_protocol::units::{parse_bytes, parse_cpu_millis, parse_seconds};
use croft_protocol::{ChainId, ContractId, FarmId, Genesis, Hash, Name, PublicKey, SecretKey};

use crate::check::{bounded, bounded_message, json_again, shown, text, toml_again};
use crate::scene::{scene, written};
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "names-and-ids",
        decodes: "names, hashes, keys and ids from text",
        sent_by: "people, files",
        files: &[
            "agents/protocol/src/hash.rs",
            "agents/protocol/src/name.rs",
            "agents/protocol/src/keys.rs",
            "agents/protocol/src/header.rs",
            "agents/protocol/src/contract.rs",
            "agents/protocol/src/release.rs",
        ],
        seeds: names,
        rounds: 3_000,
        run: names_and_ids,
    },
    Target {
        name: "amounts",
        decodes: "sizes, durations and CPUs from text",
        sent_by: "people, files",
        files: &["agents/protocol/src/units.rs", "agents/bot/src/flags/ledger.rs"],
        seeds: amounts,
        rounds: 4_000,
        run: amount,
    },
    Target {
        name: "boot-config",
        decodes: "what a machine is told before it boots (boot.toml)",
        sent_by: "a boot medium",
        files: &["agents/protocol/src/boot.rs"],
        seeds: || {
            vec![written("boot.toml", &boot().to_toml()), written("short.toml", &short_boot().to_toml())]
        },
        rounds: 800,
        run: boot_config,
    },
    Target {
        name: "addition",
        decodes: "a farm's addition to the boot file (CROFT/FARM.BIN)",
        sent_by: "a boot medium",
        files: &["agents/protocol/src/addition.rs", "agents/protocol/src/addition/network.rs"],
        seeds: || vec![("farm.bin".to_owned(), addition())],
        rounds: 400,
        run: open_addition,
    },
    Target {
        name: "grid-pin",
        decodes: "which grid is trusted (grid.toml)",
        sent_by: "people",
        files: &["agents/bot/src/commands/grid.rs", "agents/bot/src/home.rs", "agents/protocol/src/boot.rs"],
        seeds: || vec![written("grid.toml", &toml::to_string_pretty(&boot().grid).unwrap_or_default())],
        rounds: 800,
        run: grid_pin,
    },
    Target {
        name: "genesis",
        decodes: "what everybody on a grid agrees on (genesis.json)",
        sent_by: "people, a replica",
        files: &["agents/replica/src/config.rs", "agents/ledger/src/block.rs"],
        seeds: || {
            let genesis = scene().scenario.ledger.genesis();
            vec![written("genesis.json", &serde_json::to_string_pretty(genesis).unwrap_or_default())]
        },
        rounds: 800,
        run: genesis,
    },
];

fn names_and_ids(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Some(name) = shown::<Name>("name", text) {
        assert_eq!(name.as_str(), text, "a name is changed where it is read");
        assert!(!text.contains(['/', '.', '\0']) && text.len() <= 32);
    }
    let hash = shown::<Hash>("hash", text);
    assert_eq!(shown::<ChainId>("chain id", text).map(|chain| chain.0), hash);
    assert_eq!(shown::<ContractId>("contract id", text).map(|contract| contract.0), hash);
    assert_eq!(shown::<PublicKey>("public key", text).map(|key| key.0), hash.map(|hash| hash.0));
    let _ = croft_protocol::name::is_country(text);
    if let Some(version) = shown::<croft_protocol::ReleaseVersion>("version", text) {
        assert_eq!(version.to_string(), text, "a version has two texts");
    }
}

fn amount(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let digits_first = || text.starts_with(|c: char| c.is_ascii_digit());
    match parse_bytes(text) {
        Ok(bytes) => {
            assert!(bytes > 0 && i64::try_from(bytes).is_ok() && digits_first(), "'{text}' is {bytes} B");
        }
        Err(error) => bounded_message("size", &error.to_string()),
    }
    match parse_seconds(text) {
        Ok(seconds) => assert!(seconds > 0 && digits_first(), "'{text}' is {seconds} s"),
        Err(error) => bounded_message("duration", &error.to_string()),
    }
    match parse_cpu_millis(text) {
        Ok(millis) => {
            assert!((1..=1_024_000).contains(&millis) && digits_first(), "'{text}' is {millis} thousandths");
            assert!(!text.ends_with('.'), "'{text}' is a number of CPUs");
        }
        Err(error) => bounded_message("CPUs", &error.to_string()),
    }
}

fn boot_config(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match bounded("boot configuration", bytes.len(), || BootConfig::parse(text)) {
        Ok(config) => {
            assert!(!config.grid.replicas.is_empty() && config.farm.permission().is_ok());
            assert_eq!(BootConfig::parse(&config.to_toml()).as_ref(), Ok(&config));
        }
        Err(error) => assert!(error.to_string().len() <= 4 * 1024 + 2 * bytes.len(), "{error}"),
    }
}

fn grid_pin(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(pin) = bounded("grid pin", bytes.len(), || toml::from_str::<GridPin>(text)) {
        toml_again("grid pin", &pin);
    }
}

fn genesis(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(genesis) = bounded("genesis", bytes.len(), || serde_json::from_str::<Genesis>(text)) else {
        return;
    };
    json_again("genesis", &genesis);
    match croft_ledger::execute_genesis(&genesis) {
        Ok(outcome) => assert_eq!(outcome.records.len(), genesis.allocations.len() + 1),
        Err(error) => bounded_message("genesis", &error.to_string()),
    }
}

fn names() -> Vec<Seed> {
    let hash = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let words = ["web", "a-1", "be", hash, &hash.to_uppercase(), "1.4.20"].map(str::to_owned);
    words.iter().enumerate().map(|(n, word)| written(&format!("word-{n}"), word)).collect()
}

fn amounts() -> Vec<Seed> {
    let words = ["512M", "4GiB", "2T", "4096", "24h", "90s", "30d", "15m", "0.5", "250m", "2", "1.125"];
    words.iter().enumerate().map(|(n, word)| written(&format!("word-{n:02}"), word)).collect()
}

/// Every field that there is.
fn boot() -> BootConfig {
    let key = scene().scenario.validators[0].public();
    let uplink = LinkSettings {
        name: "52:54:00:12:34:56".to_owned(),
        mode: LinkMode::Static,
        addresses: vec!["192.0.2.10/24".to_owned(), "2001:db8::10/64".to_owned()],
        gateway: "192.0.2.1".parse().ok(),
        dns: "192.0.2.1".parse().into_iter().collect(),
        vlan: Some(7),
        bond: None,
    };
    BootConfig {
        node: NodeSettings { name: "n1".parse().ok(), public_addresses: vec!["node.example".to_owned()] },
        links: vec![uplink],
        clock: ClockSettings { ntp: vec!["192.0.2.2:123".to_owned()] },
        grid: GridPin {
            replicas: ["192.0.2.3:7400", "[2001:db8::3]:7400"]
                .iter()
                .filter_map(|address| address.parse().ok())
                .map(|address| croft_protocol::boot::ReplicaAddress { address, key })
                .collect(),
            ..short_boot().grid
        },
        ..short_boot()
    }
}

fn short_boot() -> BootConfig {
    let ledger = &scene().scenario.ledger;
    let key = scene().scenario.validators[0].public();
    let address = std::net::SocketAddr::from(([192, 0, 2, 3], 7400));
    BootConfig {
        grid: GridPin {
            name: ledger.genesis().name.clone(),
            chain: ledger.chain(),
            validators: ledger.genesis().validators.hash(),
            replicas: vec![croft_protocol::boot::ReplicaAddress { address, key }],
        },
        farm: FarmJoin::new(croft_ledger::memory::name("green"), &scene().scenario.join()),
        node: NodeSettings::default(),
        links: Vec::new(),
        clock: ClockSettings::default(),
    }
}

/// Where a message says that a file is.
#[must_use]
pub fn place() -> &'static Path {
    Path::new("input")
}

fn owner() -> SecretKey {
    SecretKey::from_seed(&[41; 32])
}

/// What the boot configuration above is on a medium, signed.
fn addition() -> Vec<u8> {
    let mut config = boot();
    // Two replicas can't have one key there.
    config.grid.replicas.truncate(1);
    let name = config.farm.name.clone();
    let join = Join { farm: FarmId::new(&owner().public(), &name), expires_ms: 1, nonce: [2; 16] };
    let signature = owner().sign_as_bot(Domain::JOIN, &config.grid.chain, &join);
    config.farm = FarmJoin::new(name, &SignedJoin { join, signature });
    let addition = Addition::from_boot(&config, owner().public()).expect("everything in it has a place");
    addition.seal(&owner()).expect("its owner signs it")
}

/// Nobody but the owner makes one that is accepted in his name, and what is accepted has one form.
fn open_addition(bytes: &[u8]) {
    match bounded("an addition", bytes.len(), || Validated::open(bytes, &Expectation::default())) {
        Ok(opened) => {
            assert_eq!(opened.get().owner, owner().public(), "it was signed by somebody");
            assert_eq!(bytes, addition(), "an altered addition is accepted");
        }
        Err(error) => bounded_message("an addition", &error.to_string()),
    }
}
