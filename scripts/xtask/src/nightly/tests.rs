//! The nightly with a builder that only writes files, in a history of its own.

use std::cell::{Cell, RefCell};

use super::compare::Artifact;
use super::*;

/// Writes what it is told, each build another.
struct Stand {
    contents: [&'static str; 2],
    turn: Cell<usize>,
    measures: Result<(), &'static str>,
    /// Beside croft.efi.
    media: bool,
    /// What each build was told to be.
    releases: RefCell<Vec<String>>,
}

impl Stand {
    fn new(contents: [&'static str; 2]) -> Self {
        Self { contents, turn: Cell::new(0), measures: Ok(()), media: false, releases: RefCell::default() }
    }
}

impl Builder for Stand {
    fn build(&self, source: &Path, cache: &Path, release: &str) -> Result<Built> {
        assert!(source.join("Cargo.toml").is_file(), "the commit's files are there");
        assert!(!source.join("uncommitted").exists());
        self.releases.borrow_mut().push(release.to_owned());
        fs::create_dir_all(cache)?;
        let path = cache.join("made");
        fs::write(&path, self.contents[self.turn.replace(self.turn.get() + 1)])?;
        let media = image::MEDIA.iter().map(|(_, name)| *name).filter(|_| self.media);
        let names = std::iter::once("croft.efi").chain(media);
        let artifacts = names.map(|name| Artifact { name: name.to_owned(), path: path.clone() }).collect();
        Ok(Built { artifacts, components: Vec::new() })
    }

    fn measure(&self, _: &Path, _: &Path, _: &Built) -> Result<Vec<(String, String)>> {
        match self.measures {
            Ok(()) => Ok(vec![("sizes.txt".to_owned(), "croft.efi 20 MB\n".to_owned())]),
            Err(reason) => bail!("{reason}"),
        }
    }
}

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// A workspace with the three programs, committed.
    fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        let root = scene.root();
        let put = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"init\", \"node\", \"guest\"]\n");
        let mut lock = "version = 4\n".to_owned();
        for name in ["guest", "init", "node"] {
            let package = format!(
                "[package]\nname = \"croft-{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\nlicense = \"Apache-2.0\"\n"
            );
            put(&format!("{name}/Cargo.toml"), &package);
            put(&format!("{name}/src/main.rs"), "fn main() {}\n");
            let _ = write!(lock, "\n[[package]]\nname = \"croft-{name}\"\nversion = \"0.1.0\"\n");
        }
        put("Cargo.lock", &lock);
        scene.git(&["init", "-q"]);
        scene.commit("all: the first change");
        fs::write(root.join("uncommitted"), "").unwrap();
        scene
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn shelf(&self) -> PathBuf {
        self.dir.path().join("shelf")
    }

    fn git(&self, arguments: &[&str]) {
        let who = ["-c", "user.name=t", "-c", "user.email=t@localhost"];
        repo::capture(Command::new("git").arg("-C").arg(self.root()).args(who).args(arguments)).unwrap();
    }

    fn commit(&self, title: &str) {
        self.git(&["add", "-A", ":!uncommitted"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", title]);
    }

    fn make(&self, builder: &Stand, key: Option<&Path>) -> Result<PathBuf> {
        let root = self.root();
        let shelf = Shelf::open(&self.shelf())?;
        let slot = shelf.next("2026-01-31")?;
        let nightly = Nightly {
            root: &root,
            work: self.dir.path().join("work"),
            release: release::version("0.1.0", &slot)?,
            shelf,
            slot,
            sign_key: key,
            remarks: vec!["quick".to_owned()],
        };
        nightly.make(builder)
    }

    fn latest(&self, name: &str) -> String {
        fs::read_to_string(self.shelf().join("latest").join(name)).unwrap()
    }
}

#[test]
fn two_equal_builds_are_published_with_their_papers() {
    let scene = Scene::new();
    scene.make(&Stand::new(["boot", "boot"]), None).unwrap();
    assert_eq!(scene.latest("croft.efi"), "boot");
    let version: Version = serde_json::from_str(&scene.latest("version.json")).unwrap();
    assert_eq!(version.commit, changes::head(&scene.root()).unwrap());
    assert!(version.remarks.contains(&"not signed: no --sign-key".to_owned()));
    assert!(scene.latest("sbom.cdx.json").contains("\"croft-guest\""));
    let page = scene.latest("README.md");
    assert!(page.contains("croft.efi 20 MB") && page.contains("all: the first change"), "{page}");
    let folder = scene.shelf().join("latest");
    let mut check = Command::new("sha256sum");
    repo::capture(check.current_dir(folder).args(["--check", "--strict", "SHA256SUMS"])).unwrap();
    let sums = scene.latest("SHA256SUMS");
    for name in ["croft.efi", "version.json", "CHANGES.md", "sbom.cdx.json", "sizes.txt", "README.md"] {
        assert!(sums.contains(&format!("  {name}\n")), "{name} has no sum: {sums}");
    }
}

#[test]
fn both_builds_are_one_release_and_the_next_nightly_of_the_day_is_a_greater_one() {
    let scene = Scene::new();
    for release in ["0.1.2026013101", "0.1.2026013102"] {
        let stand = Stand::new(["a", "a"]);
        scene.make(&stand, None).unwrap();
        assert_eq!(*stand.releases.borrow(), [release, release]);
        let version: Version = serde_json::from_str(&scene.latest("version.json")).unwrap();
        assert_eq!((version.number.as_str(), version.date.as_str()), (release, "2026-01-31"));
        let page = scene.latest("README.md");
        assert!(page.starts_with(&format!("# Croft {release} of 2026-01-31\n")), "{page}");
        assert!(scene.latest("sbom.cdx.json").contains(&format!("\"bom-ref\": \"croft@{release}\"")));
    }
}

#[test]
fn who_gets_media_reads_how_to_boot_them_and_how_to_give_them_a_farm() {
    let scene = Scene::new();
    scene.make(&Stand { media: true, ..Stand::new(["a", "a"]) }, None).unwrap();
    assert_eq!((scene.latest("croft-usb.img"), scene.latest("croft.iso")), ("a".to_owned(), "a".to_owned()));
    let page = scene.latest("README.md");
    for text in [
        "- croft-usb.img: 1 bytes",
        "croft media flash croft-usb.img /dev/sdX",
        "farm image --farm alpha --boot-file croft.efi",
        "cargo xtask image --boot-file --media --release 0.1.2026013101\n",
    ] {
        assert!(page.contains(text), "{text} is missing: {page}");
    }
    scene.make(&Stand::new(["a", "a"]), None).unwrap();
    assert!(!scene.latest("README.md").contains("How to boot it"), "a quick one has nothing to boot");
}

#[test]
fn the_second_nightly_lists_what_came_after_the_first() {
    let scene = Scene::new();
    scene.make(&Stand::new(["a", "a"]), None).unwrap();
    scene.commit("all: the second change");
    scene.make(&Stand::new(["b", "b"]), None).unwrap();
    let changes = scene.latest("CHANGES.md");
    assert!(changes.contains("the second change") && !changes.contains("the first change"), "{changes}");
    assert_eq!(scene.latest("croft.efi"), "b");
}

#[test]
fn builds_that_differ_leave_the_latest_as_it_was() {
    let scene = Scene::new();
    scene.make(&Stand::new(["good", "good"]), None).unwrap();
    let text = scene.make(&Stand::new(["bad1", "bad2"]), None).unwrap_err().to_string();
    assert!(text.starts_with("croft.efi differs between the two builds: first at offset 3 (0x3)"), "{text}");
    assert_eq!(scene.latest("croft.efi"), "good");
    assert!(!scene.shelf().join("2026-01-31.2").exists());
}

#[test]
fn a_score_or_budget_that_is_missed_leaves_the_latest_as_it_was() {
    let scene = Scene::new();
    scene.make(&Stand::new(["good", "good"]), None).unwrap();
    let missed = Stand { measures: Err("a budget was missed"), ..Stand::new(["next", "next"]) };
    assert_eq!(scene.make(&missed, None).unwrap_err().to_string(), "a budget was missed");
    assert_eq!(scene.latest("croft.efi"), "good");
}

#[test]
fn the_sums_are_signed_and_anyone_can_verify_them() {
    let scene = Scene::new();
    let key = scene.dir.path().join("key.pem");
    repo::capture(Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&key))
        .unwrap();
    let folder = scene.make(&Stand::new(["a", "a"]), Some(&key)).unwrap();
    let verify = || {
        let mut verify = Command::new("openssl");
        verify.current_dir(&folder).args(["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "signer.pem"]);
        repo::capture(verify.args(["-in", "SHA256SUMS", "-sigfile", "SHA256SUMS.sig"]))
    };
    verify().unwrap();
    fs::write(folder.join("SHA256SUMS"), "altered").unwrap();
    assert!(verify().is_err());
}

#[test]
fn a_damaged_last_nightly_is_named_and_stays_the_latest() {
    let scene = Scene::new();
    scene.make(&Stand::new(["a", "a"]), None).unwrap();
    fs::write(scene.shelf().join("latest/version.json"), "{").unwrap();
    let error = scene.make(&Stand::new(["b", "b"]), None).unwrap_err();
    assert!(error.to_string().contains("version.json is damaged"), "{error:#}");
    assert_eq!(scene.latest("croft.efi"), "a");
}
