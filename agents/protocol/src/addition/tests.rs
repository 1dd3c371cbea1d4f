use proptest::prelude::*;

use super::*;
use crate::boot::{BondSettings, LinkMode, LinkSettings};
use crate::command::Join;

const CHAIN: ChainId = ChainId(Hash([7; 32]));

fn owner() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

fn signed_join(key: &SecretKey, chain: &ChainId) -> SignedJoin {
    let join = Join { farm: FarmId(Hash([3; 32])), expires_ms: 1_900_000_000_000, nonce: [4; 16] };
    SignedJoin { signature: key.sign_as_bot(Domain::JOIN, chain, &join), join }
}

fn link(name: &str) -> LinkSettings {
    LinkSettings {
        name: name.to_owned(),
        mode: LinkMode::Dhcp,
        addresses: Vec::new(),
        gateway: None,
        dns: Vec::new(),
        vlan: None,
        bond: None,
    }
}

fn boot() -> BootConfig {
    let key = |n| SecretKey::from_seed(&[n; 32]).public();
    BootConfig {
        grid: GridPin {
            name: "home".parse().unwrap(),
            chain: CHAIN,
            validators: Hash([9; 32]),
            replicas: vec![
                ReplicaAddress { address: "192.0.2.1:7700".parse().unwrap(), key: key(20) },
                ReplicaAddress { address: "[2001:db8::1]:7700".parse().unwrap(), key: key(21) },
            ],
        },
        farm: FarmJoin::new("barn".parse().unwrap(), &signed_join(&owner(), &CHAIN)),
        node: NodeSettings {
            name: Some("node-1".parse().unwrap()),
            public_addresses: vec!["203.0.113.7".to_owned()],
        },
        links: vec![
            LinkSettings {
                bond: Some(BondSettings {
                    members: vec!["eth0".to_owned(), "52:54:00:12:34:56".to_owned()],
                    mode: BondMode::Lacp,
                }),
                vlan: Some(42),
                mode: LinkMode::Static,
                addresses: vec!["192.0.2.10/24".to_owned(), "2001:db8::10/64".to_owned()],
                gateway: Some("192.0.2.1".parse().unwrap()),
                dns: vec!["192.0.2.53".parse().unwrap()],
                ..link("bond0")
            },
            LinkSettings { mode: LinkMode::Off, ..link("eth7") },
        ],
        clock: ClockSettings { ntp: vec!["ntp.example:1123".to_owned()] },
    }
}

fn addition() -> Addition {
    Addition::from_boot(&boot(), owner().public()).unwrap()
}

fn open(bytes: &[u8]) -> Result<Validated, InvalidAddition> {
    Validated::open(bytes, &Expectation::default())
}

/// Signs whatever it is given, as an owner with another program could.
fn force(addition: &Addition) -> Vec<u8> {
    let body = crate::encode(addition);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(&body);
    bytes.extend(owner().sign(Domain::ADDITION, &addition.grid.chain, addition).0);
    bytes
}

/// The whole chain, as it is printed at the edge.
fn refusal(change: impl FnOnce(&mut Addition)) -> String {
    let mut changed = addition();
    change(&mut changed);
    let error = open(&force(&changed)).unwrap_err();
    assert_eq!(changed.seal(&owner()).unwrap_err(), error, "what is refused is not signed either");
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn an_addition_says_what_the_boot_configuration_says() {
    let bytes = addition().seal(&owner()).unwrap();
    let validated = open(&bytes).unwrap();
    assert_eq!(validated.boot_config(), boot());
    assert_eq!(validated.farm_id(), FarmId(Hash([3; 32])));
    assert_eq!(BootConfig::parse(&validated.boot_config().to_toml()).unwrap(), boot());
    assert_eq!(addition().seal(&owner()).unwrap(), bytes, "one content, one file");
}

#[test]
fn each_flipped_bit_of_a_file_is_refused() {
    let bytes = addition().seal(&owner()).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn the_frame_says_which_part_of_it_is_wrong() {
    let bytes = addition().seal(&owner()).unwrap();
    let message = |bytes: &[u8]| open(bytes).unwrap_err().to_string();
    assert!(message(b"").starts_with("the farm's addition has 0 bytes, possible are 78 to 16384: copy"));
    assert!(message(b"\x7fELF\x02\x01\x01\0 and more").starts_with(
        "this is no farm's addition: it begins with 7f454c4602010100, not with CROFTADD; copy CROFT/FARM.BIN again"
    ));
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert!(message(&newer).contains("has version 2, this release knows 1"));
    let short = message(&bytes[..bytes.len() - 1]);
    let (has, said) = (bytes.len() - 1, bytes.len());
    assert!(short.contains(&format!("it has {has} bytes and says {said}")), "{short}");
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(message(&longer).contains("cut short or has something appended"));
    longer.resize(limits::ADDITION_BYTES + 1, 0);
    assert!(message(&longer).contains("has 16385 bytes"));
}

#[test]
fn a_foreign_signature_is_told_from_a_foreign_join_token() {
    let stranger = SecretKey::from_seed(&[66; 32]);
    let mut stolen = addition();
    stolen.owner = stranger.public();
    let body = force(&stolen);
    assert_eq!(open(&body).unwrap_err(), InvalidAddition::Signature { owner: stranger.public() });

    let joined = signed_join(&stranger, &CHAIN);
    assert!(
        refusal(|a| a.join = joined).starts_with("the join token in the farm's addition was not signed by")
    );
    let elsewhere = signed_join(&owner(), &ChainId(Hash([8; 32])));
    assert!(refusal(|a| a.join = elsewhere).contains("for this grid"));
    assert!(matches!(addition().seal(&stranger), Err(InvalidAddition::OtherOwner { .. })));
}

#[test]
fn a_machine_that_belongs_somewhere_refuses_another_grid_and_another_owner() {
    let bytes = addition().seal(&owner()).unwrap();
    let other = Some(ChainId(Hash([8; 32])));
    let error = Validated::open(&bytes, &Expectation { chain: other, owner: None }).unwrap_err();
    assert!(error.to_string().contains("use an addition of the same grid"), "{error}");
    let other = Some(SecretKey::from_seed(&[2; 32]).public());
    let error = Validated::open(&bytes, &Expectation { chain: Some(CHAIN), owner: other }).unwrap_err();
    assert!(error.to_string().contains("use an addition of the same farm"), "{error}");
    let known = Expectation { chain: Some(CHAIN), owner: Some(owner().public()) };
    Validated::open(&bytes, &known).unwrap();
}

#[test]
fn a_join_token_ends_at_its_time() {
    let validated = open(&addition().seal(&owner()).unwrap()).unwrap();
    validated.check_time(1_900_000_000_000).unwrap();
    let error = validated.check_time(1_900_000_000_001).unwrap_err().to_string();
    assert!(error.contains("ended at 1900000000000 ms since 1970 and it is 1900000000001 now"), "{error}");
}

#[test]
fn lists_are_bounded_and_replicas_must_be_reachable() {
    assert_eq!(
        refusal(|a| a.grid.replicas.clear()),
        "the replicas of the farm's addition: 0 entries, possible are 1 to 64"
    );
    assert!(refusal(|a| a.ntp = vec!["a".to_owned(); 17]).starts_with("the time servers"));
    assert!(
        refusal(|a| a.public_addresses = vec!["a b".to_owned()])
            .contains("'a b' is not an address or a host")
    );
    assert!(refusal(|a| a.ntp = vec!["x".repeat(254)]).contains("the time servers"));
    assert!(refusal(|a| a.grid.replicas[0].address = "0.0.0.0:1".parse().unwrap()).contains("0.0.0.0:1"));
    assert!(refusal(|a| a.grid.replicas[0].address.set_port(0)).contains("none that a machine can reach"));
    assert!(refusal(|a| a.grid.replicas[1].key = a.grid.replicas[0].key).contains("stands twice"));
}

#[test]
fn links_that_make_no_sense_are_refused_by_name() {
    fn uses(prefix: &str) -> LinkUse {
        let (address, length) = prefix.split_once('/').unwrap();
        let prefix = Prefix { address: address.parse().unwrap(), length: length.parse().unwrap() };
        LinkUse::Static { addresses: vec![prefix], gateway: None }
    }
    let name = |text: &str| LinkId::Name(text.to_owned());
    assert_eq!(
        refusal(|a| a.links[0].vlan = Some(4095)),
        "links of the farm's addition: link 'bond0': VLAN 4095 does not exist, possible are 1 to 4094"
    );
    assert!(refusal(|a| a.links[1].id = name("a/b")).contains("'a/b' is neither the name of a link"));
    assert!(refusal(|a| a.links[1].id = LinkId::Mac([1, 0, 0, 0, 0, 0])).contains("01:00:00:00:00:00"));
    assert!(refusal(|a| a.links[1].id = name("eth0")).contains("'eth0' belongs to a bond"));
    assert!(refusal(|a| a.links.push(a.links[1].clone())).contains("link 'eth7' stands twice"));
    assert!(refusal(|a| a.links[1].uses = uses("127.0.0.1/8")).contains("127.0.0.1"));
    assert!(refusal(|a| a.links[1].uses = uses("192.0.2.1/33")).contains("192.0.2.1"));
    let none = LinkUse::Static { addresses: Vec::new(), gateway: None };
    assert!(refusal(|a| a.links[1].uses = none).contains("is static but has no address"));
    assert!(refusal(|a| a.links[0].bond.as_mut().unwrap().members.clear()).contains("has 0 members"));
    assert!(refusal(|a| a.links[0].id = LinkId::Mac([2; 6])).contains("must have a name of its own"));
    assert!(refusal(|a| a.links = vec![a.links[1].clone(); 33]).contains("33 links, at most 32"));
}

#[test]
fn a_boot_configuration_with_a_wrong_link_makes_no_addition() {
    let message = |change: &dyn Fn(&mut LinkSettings)| {
        let mut boot = boot();
        change(&mut boot.links[1]);
        match Addition::from_boot(&boot, owner().public()).unwrap_err() {
            FromBootError::Addition(InvalidAddition::Link(error)) => error.to_string(),
            other => other.to_string(),
        }
    };
    assert_eq!(
        message(&|l| l.addresses = vec!["192.0.2.300/24".to_owned()]),
        "link 'eth7': '192.0.2.300/24' is not an address with its prefix length such as 192.0.2.10/24"
    );
    assert!(message(&|l| l.gateway = Some("192.0.2.1".parse().unwrap())).contains("is not static"));
    assert!(message(&|l| l.name = "52:54:00:12:34".to_owned()).contains("nor a MAC address"));
}

fn links() -> impl Strategy<Value = Vec<Link>> {
    let prefix = (any::<[u8; 4]>(), 1..=32u8).prop_map(|(ip, length)| Prefix { address: ip.into(), length });
    let uses = prop_oneof![
        Just(LinkUse::Dhcp),
        Just(LinkUse::Off),
        proptest::collection::vec(prefix, 1..4)
            .prop_map(|addresses| LinkUse::Static { addresses, gateway: None }),
    ];
    let link = ("[a-z][a-z0-9]{0,14}", uses, proptest::option::of(1..=4094u16));
    let link = link.prop_map(|(name, uses, vlan)| Link {
        id: LinkId::Name(name),
        uses,
        dns: Vec::new(),
        vlan,
        bond: None,
    });
    proptest::collection::vec(link, 0..5)
}

proptest! {
    #[test]
    fn random_bytes_are_refused_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(open(&bytes).is_err());
    }

    #[test]
    fn a_random_body_in_a_right_frame_is_refused(body in proptest::collection::vec(any::<u8>(), 0..1024)) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(&body);
        bytes.extend([0; 64]);
        prop_assert!(open(&bytes).is_err());
    }

    #[test]
    fn what_is_sealed_opens_as_it_was_and_no_flipped_bit_does(
        links in links(),
        ntp in proptest::collection::vec("[a-z0-9.]{1,40}", 0..4),
        bit in any::<prop::sample::Index>(),
    ) {
        let addition = Addition { links, ntp, ..addition() };
        let Ok(bytes) = addition.seal(&owner()) else {
            prop_assert!(open(&force(&addition)).is_err());
            return Ok(());
        };
        let opened = open(&bytes).unwrap();
        prop_assert_eq!(opened.get(), &addition);
        let bit = bit.index(bytes.len() * 8);
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(open(&flipped).is_err());
    }
}
