use super::*;
use crate::data::WhyMemory;
use crate::tools::for_test;

const SIZE: u64 = 32 << 20;

fn contract(byte: u8) -> ContractKey {
    ContractKey::new([byte; 32])
}

fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

/// Whoever runs the test, so that changing the owner needs no privilege.
fn me() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// Volumes in a plain folder, which has no project quota.
struct Bench {
    folder: tempfile::TempDir,
    tools: Tools,
}

impl Bench {
    fn new() -> Option<Self> {
        let bench = Self { folder: tempfile::tempdir().unwrap(), tools: for_test()? };
        fs::create_dir(bench.folder.path().join("volumes")).unwrap();
        Some(bench)
    }

    fn open(&self) -> Volumes {
        let medium = Medium::Memory { limit_bytes: 0, why: WhyMemory::NoDisk };
        Volumes::open(&Data { path: self.folder.path().into(), medium }, self.tools.clone()).unwrap()
    }
}

fn ended(byte: u8) -> Ended {
    Ended::by_ledger(contract(byte), 1_000, 1_000).unwrap()
}

#[test]
fn an_exclusive_volume_is_allocated_formatted_and_kept() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    let path = volumes.create_exclusive(&contract(1), &name("db"), SIZE, me()).unwrap();
    assert!(path.ends_with(format!("{}/db.img", "01".repeat(32))));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), SIZE);
    assert!(meta.blocks() * 512 >= SIZE, "holes are left: {} of {SIZE} bytes", meta.blocks() * 512);
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    bench.tools.check(&path).unwrap();

    // Data survives that the volume is asked for again.
    let file = File::options().read(true).write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"precious", SIZE - 8).unwrap();
    assert_eq!(bench.open().create_exclusive(&contract(1), &name("db"), SIZE, me()).unwrap(), path);
    let mut bytes = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, SIZE - 8).unwrap();
    assert_eq!(&bytes, b"precious");
}

#[test]
fn a_volume_never_changes_its_size_or_kind_in_silence() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    volumes.create_exclusive(&contract(1), &name("db"), SIZE, me()).unwrap();
    let error = volumes.create_exclusive(&contract(1), &name("db"), 2 * SIZE, me()).unwrap_err().to_string();
    assert!(
        error.ends_with("exists with 33554432 bytes instead of 67108864: give the other one another name"),
        "{error}"
    );
    let error = volumes.create_shared(&contract(1), &name("db"), SIZE, me()).unwrap_err().to_string();
    assert!(error.contains("exists as Exclusive and is wanted as Shared"), "{error}");
}

#[test]
fn a_size_that_makes_no_sense_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    for bytes in [0, VOLUME_MIN_BYTES - 1, VOLUME_MAX_BYTES + 1, u64::MAX] {
        let made = volumes.create_exclusive(&contract(1), &name("db"), bytes, me());
        assert!(matches!(made, Err(CreateVolumeError::Size { .. })), "{bytes}: {made:?}");
    }
    assert_eq!(volumes.list().unwrap(), []);
}

#[test]
fn a_volume_that_does_not_fit_leaves_nothing_and_says_where_to_go() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    let error = volumes.create_exclusive(&contract(1), &name("db"), VOLUME_MAX_BYTES, me()).unwrap_err();
    assert!(matches!(error, CreateVolumeError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("place it on another node, or end contracts of this one"), "{error}");
    let error = volumes.create_shared(&contract(1), &name("web"), VOLUME_MAX_BYTES, me()).unwrap_err();
    assert!(matches!(error, CreateVolumeError::Full { .. }), "{error:?}");
    assert_eq!(fs::read_dir(volumes.folder(&contract(1))).unwrap().count(), 0, "a rest takes room");
}

#[test]
fn what_a_power_cut_left_half_done_is_cleared_and_whole_volumes_stay() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    volumes.create_exclusive(&contract(1), &name("db"), SIZE, me()).unwrap();
    let folder = volumes.folder(&contract(1));
    fs::write(folder.join(".new-late.img"), "half").unwrap();
    fs::create_dir_all(folder.join(".gone-old/deep")).unwrap();
    fs::write(folder.join(".gone-old/deep/file"), "x").unwrap();
    let volumes = bench.open();
    let names: Vec<String> = volumes.list().unwrap().iter().map(|volume| volume.name.to_string()).collect();
    assert_eq!(names, ["db"]);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
}

#[test]
fn a_shared_volume_without_quota_says_why_it_is_not_limited() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    let shared = volumes.create_shared(&contract(2), &name("www"), SIZE, me()).unwrap();
    assert_eq!(shared.limit.unwrap_err(), "/data is in memory, where folders have no limits of their own");
    assert_eq!(fs::metadata(&shared.path).unwrap().permissions().mode() & 0o777, 0o700);
    fs::write(shared.path.join("index.html"), vec![b'x'; 100_000]).unwrap();
    let listed = &volumes.list().unwrap()[0];
    assert_eq!((listed.kind, listed.size_bytes), (Kind::Shared, None));
    assert!(listed.used_bytes >= 100_000, "{}", listed.used_bytes);
    let again = volumes.create_shared(&contract(2), &name("www"), SIZE, me()).unwrap();
    assert!(again.path.join("index.html").exists());
}

#[test]
fn a_volume_belongs_to_the_user_that_serves_it() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to give files away");
        return;
    }
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    let owner = Owner { uid: 12_345, gid: 12_346 };
    let image = volumes.create_exclusive(&contract(1), &name("db"), SIZE, owner).unwrap();
    let shared = volumes.create_shared(&contract(1), &name("www"), SIZE, owner).unwrap();
    for path in [&image, &shared.path] {
        let meta = fs::metadata(path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12_345, 12_346), "{}", path.display());
    }
}

#[test]
fn what_exists_is_compared_with_what_is_known() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    volumes.create_shared(&contract(1), &name("a"), SIZE, me()).unwrap();
    volumes.create_shared(&contract(2), &name("b"), SIZE, me()).unwrap();
    let known = BTreeSet::from([(contract(1), name("a")), (contract(3), name("c"))]);
    let comparison = volumes.compare(&known).unwrap();
    assert_eq!(comparison.present.len(), 1);
    assert_eq!(comparison.missing, [(contract(3), name("c"))]);
    assert_eq!(comparison.unknown.len(), 1);
    assert_eq!(comparison.unknown[0].contract, contract(2));
    assert!(comparison.unknown[0].path.exists(), "comparing deletes nothing");
}

#[test]
fn only_the_ledgers_word_on_this_contract_deletes() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    volumes.create_exclusive(&contract(1), &name("db"), SIZE, me()).unwrap();
    let shared = volumes.create_shared(&contract(1), &name("www"), SIZE, me()).unwrap();
    fs::write(shared.path.join("page"), "x").unwrap();
    let listed = volumes.list().unwrap();

    let error = Ended::by_ledger(contract(1), 1_000, 400).unwrap_err();
    assert_eq!(error.to_string(), format!("data of contract {} is kept for 600 s more", contract(1)));
    let error = volumes.delete(&listed[0], &ended(2)).unwrap_err();
    assert!(matches!(error, DeleteVolumeError::OtherContract { .. }), "{error}");
    assert_eq!(volumes.list().unwrap(), listed);

    volumes.delete(&listed[0], &ended(1)).unwrap();
    assert_eq!(volumes.list().unwrap(), listed[1..], "the other volume of the contract stays");
    volumes.delete(&listed[1], &ended(1)).unwrap();
    volumes.delete(&listed[1], &ended(1)).unwrap();
    assert_eq!(fs::read_dir(&volumes.root).unwrap().count(), 0);
}

#[test]
fn deleting_follows_no_link_out_of_the_volume() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    let shared = volumes.create_shared(&contract(1), &name("www"), SIZE, me()).unwrap();
    let outside = bench.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, shared.path.join("link")).unwrap();
    let volume = volumes.list().unwrap().remove(0);
    assert!(volume.used_bytes < 100_000, "a link was followed");
    volumes.delete(&volume, &ended(1)).unwrap();
    assert!(outside.join("precious").exists());
}

#[test]
fn names_cannot_leave_their_folder() {
    let long = "x".repeat(NAME_MAX_BYTES + 1);
    for text in ["", ".", "..", "../x", "a/b", "a.img", "-a", "A", "a_b", "a\0", "ü", long.as_str()] {
        assert!(VolumeName::parse(text).is_err(), "{text:?}");
    }
    for text in ["", "..", "AB", "0123"] {
        assert!(ContractKey::parse(text).is_err(), "{text:?}");
    }
    assert_eq!(ContractKey::parse(&contract(7).to_string()), Ok(contract(7)));
    assert_eq!(
        VolumeName::parse("../x").unwrap_err().to_string(),
        "\"../x\" is no name for a volume: 1 to 63 of a-z, 0-9 and -, first a letter or digit"
    );
}

#[test]
fn strangers_in_the_folder_are_left_alone() {
    let Some(bench) = Bench::new() else { return };
    let volumes = bench.open();
    fs::create_dir(volumes.root.join("lost+found")).unwrap();
    fs::create_dir_all(volumes.folder(&contract(1)).join("Bad Name")).unwrap();
    fs::write(volumes.folder(&contract(1)).join("note"), "x").unwrap();
    std::os::unix::fs::symlink("/", volumes.folder(&contract(1)).join("link")).unwrap();
    assert_eq!(bench.open().list().unwrap(), []);
    assert!(volumes.root.join("lost+found").exists());
}
