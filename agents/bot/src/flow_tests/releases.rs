//! Releases from the command line: keys, signatures of several people, publication, a farm's policy, a halt.

use serde_json::json;

use super::world::{World, fields_are_documented};

/// An EFI program, right in its headers and useless in its code; several chunks long.
pub(super) fn efi_program(fill: u8) -> Vec<u8> {
    const PE: usize = 0x80;
    const SECTION: usize = 2_500_000_usize.next_multiple_of(512);
    let mut file = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &(PE as u32).to_le_bytes());
    put(PE, b"PE\0\0");
    put(PE + 4, &0x8664_u16.to_le_bytes());
    put(PE + 6, &1_u16.to_le_bytes());
    put(PE + 20, &0xa0_u16.to_le_bytes());
    let optional = PE + 24;
    put(optional, &0x20b_u16.to_le_bytes());
    put(optional + 60, &0x200_u32.to_le_bytes());
    put(optional + 108, &6_u32.to_le_bytes());
    let section = optional + 0xa0;
    put(section, b".text\0\0\0");
    put(section + 8, &(SECTION as u32).to_le_bytes());
    put(section + 12, &0x1000_u32.to_le_bytes());
    put(section + 16, &(SECTION as u32).to_le_bytes());
    put(section + 20, &0x200_u32.to_le_bytes());
    file.extend((0..SECTION).map(|i| fill.wrapping_add((i / 100) as u8)));
    file
}

struct Releases {
    world: World,
    keys: [String; 2],
}

impl Releases {
    /// Two release keys, of which both are needed.
    fn new() -> Self {
        let world = World::with_farm();
        let keys = ["ann.key", "ben.key"].map(|name| world.home().with_file_name(name).display().to_string());
        let made = keys.each_ref().map(|file| world.json(&format!("release keys new {file}")));
        fields_are_documented("release keys new", &made[0]);
        let out = world.home().with_file_name("keys.json").display().to_string();
        let [one, two] = made.each_ref().map(|made| made["key"].as_str().unwrap().to_owned());
        let propose = format!("release keys propose --key {one} --key {two} --threshold 2 --out {out}");
        let proposed = world.json(&propose);
        fields_are_documented("release keys propose", &proposed);
        assert_eq!((&proposed["enough"], &proposed["signed"]), (&false.into(), &json!([])));

        let early = world.run(&format!("release publish {out} --bot alice"));
        assert_eq!(early.code, 3, "{}", early.err);
        assert!(early.err.contains("it is signed by 0 of 1 power of the validators"), "{}", early.err);
        let stranger = world.run(&format!("release sign {out} --key {}", keys[0]));
        assert!(stranger.err.contains("which is no validator of grid 'demo'"), "{}", stranger.err);
        let validator = world.home().join("grids/demo/ledger/validator.key").display().to_string();
        world.text(&format!("release sign {out} --key {validator}"));
        world.text(&format!("release publish {out} --bot alice"));
        let shown = world.json("release keys show");
        fields_are_documented("release keys show", &shown);
        assert_eq!((&shown["threshold"], shown["keys"].as_array().unwrap().len()), (&2.into(), 2));
        Self { world, keys }
    }

    /// Prepared, signed by both, published.
    fn publish(&self, version: &str, fill: u8) {
        let boot = self.boot_file(fill);
        let out = self.path(&format!("release-{version}.json"));
        let prepare = format!("release prepare --boot-file {boot} --channel stable --version {version}");
        self.world.text(&format!("{prepare} --out {out}"));
        for key in &self.keys {
            self.world.text(&format!("release sign {out} --key {key}"));
        }
        self.world.text(&format!("release publish {out} --boot-file {boot} --bot alice"));
    }

    fn boot_file(&self, fill: u8) -> String {
        let path = self.path(&format!("croft-{fill}.efi"));
        std::fs::write(&path, efi_program(fill)).unwrap();
        path
    }

    fn path(&self, name: &str) -> String {
        self.world.home().with_file_name(name).display().to_string()
    }
}

#[test]
fn a_release_is_prepared_signed_by_two_published_listed_and_halted() {
    let releases = Releases::new();
    let (world, keys) = (&releases.world, &releases.keys);
    let missing = world.run("release list stable");
    assert_eq!(missing.code, 4, "{}", missing.err);
    let (boot, out) = (releases.boot_file(1), releases.path("release.json"));
    let prepare =
        format!("release prepare --boot-file {boot} --channel stable --version 1.0.0 --notes first");
    let prepared = world.json(&format!("{prepare} --out {out}"));
    fields_are_documented("release prepare", &prepared);
    let release = &prepared["subject"]["release"];
    assert_eq!((&release["version"], &release["previous"]), (&"1.0.0".into(), &json!(null)));
    let bytes = efi_program(1);
    assert_eq!(release["boot_file"]["size_bytes"], bytes.len());
    assert_eq!(release["boot_file"]["sha256"], croft_protocol::Hash::of_bytes(&bytes).to_string());
    let authenticode = &release["boot_file"]["authenticode"];
    let predicted = json!([{ "pcr": 4, "digest": authenticode }, { "pcr": 11, "digest": authenticode }]);
    assert_eq!(release["measurements"], predicted);

    let signed = world.json(&format!("release sign {out} --key {}", keys[0]));
    fields_are_documented("release sign", &signed);
    assert_eq!(signed["enough"], false);
    let early = world.run(&format!("release publish {out} --boot-file {boot} --bot alice"));
    assert_eq!(early.code, 3, "{}", early.err);
    assert!(early.err.contains("signed by 1 of the 2 release keys that are needed"), "{}", early.err);
    let text = world.text(&format!("release sign {out} --key {}", keys[1]));
    assert!(text.contains("  register 4    ") && text.contains("  register 11   "), "{text}");
    assert!(text.contains(&format!("Next: 'croft release publish {out}'")), "{text}");
    let other = releases.boot_file(2);
    let wrong = world.run(&format!("release publish {out} --boot-file {other} --bot alice"));
    assert!(wrong.err.contains("is not the boot file of this release"), "{}", wrong.err);
    let none = world.run(&format!("release publish {out} --bot alice"));
    assert!(none.err.contains("say where the boot file is with --boot-file"), "{}", none.err);
    let published = world.json(&format!("release publish {out} --boot-file {boot} --bot alice"));
    fields_are_documented("release publish", &published);

    releases.publish("1.1.0", 3);
    let listed = world.json("release list stable");
    fields_are_documented("release list", &listed);
    assert_eq!((&listed["offered"], &listed["latest"]), (&"1.1.0".into(), &"1.1.0".into()));
    let versions: Vec<_> = listed["releases"].as_array().unwrap().iter().map(|r| &r["version"]).collect();
    assert_eq!(versions, ["1.1.0", "1.0.0"]);
    let shown = world.json("release show stable 1.1.0");
    fields_are_documented("release show", &shown);
    assert_eq!((&shown["state"], &shown["previous"]), (&"published".into(), &"1.0.0".into()));

    let halted = world.json(&format!("release halt stable 1.1.0 --key {} --reason bad", keys[0]));
    fields_are_documented("release halt", &halted);
    assert_eq!(halted["state"]["halted"]["key"]["reason"], "bad");
    let text = world.text("release list stable");
    assert!(
        text.contains("channel 'stable' offers 1.0.0") && text.contains("halted by release key"),
        "{text}"
    );
    let again = world.run(&format!("release halt stable 1.1.0 --key {} --reason bad", keys[0]));
    assert_eq!(again.code, 3, "{}", again.err);
    assert!(again.err.contains("is halted already"), "{}", again.err);
    let old = world.run(&format!(
        "release prepare --boot-file {boot} --channel stable --version 1.0.5 --out {}",
        releases.path("old.json")
    ));
    assert!(old.err.contains("version 1.0.5 is not above 1.1.0"), "{}", old.err);
}

#[test]
fn a_farms_policy_is_its_owners_and_what_is_not_named_stays() {
    let world = World::with_farm();
    let none = world.text("farm policy attic --bot bob");
    assert_eq!(none, "farm 'attic' has no policy: its machines take no releases\n");
    let no_channel = world.run("farm policy attic --share 100 --bot bob");
    assert!(no_channel.err.contains("follows no channel yet: name one with --channel"), "{}", no_channel.err);
    let stranger = world.run("farm policy attic --channel stable --bot alice");
    assert_eq!(stranger.code, 3, "{}", stranger.err);
    let set = world.json("farm policy attic --channel stable --window 23:30+90 --bot bob");
    fields_are_documented("farm policy", &set);
    let window = json!({ "start_minute": 1410, "duration_minutes": 90 });
    let expected = json!({ "channel": "stable", "share_per_mille": 1000, "window": window, "hold": false });
    assert_eq!(set["policy"], expected);
    let held = world.text("farm policy attic --share 50 --hold --bot bob");
    assert!(held.contains("follows channel 'stable', but holds upgrades\n  share   50 of 1000"), "{held}");
    assert!(held.contains("from 23:30 UTC for 90 minutes"), "{held}");
    let resumed = world.json("farm policy attic --resume --window any --bot bob");
    assert_eq!((&resumed["policy"]["hold"], &resumed["policy"]["window"]), (&false.into(), &json!(null)));
    assert_eq!(resumed["policy"]["share_per_mille"], 50);
    let many = world.run("farm policy attic --share 1001 --bot bob");
    assert_eq!(many.code, 3, "{}", many.err);
    assert!(many.err.contains("the share per mille must be 0 to 1000, not 1001"), "{}", many.err);
}
