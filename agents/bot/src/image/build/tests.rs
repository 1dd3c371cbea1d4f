use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::json;
use tar::EntryType;

use super::*;
use crate::image::oci::Compression;
use crate::image::testing::{TarBuilder, write_layout};
use crate::terminal::Silent;
use crate::testing::{have_tool, is_root, run_tool};

fn tools() -> bool {
    have_tool("mkfs.erofs") && have_tool("fakeroot")
}

/// A layout with an image that has something of everything.
fn layout(dir: &Path) -> Hash {
    let noise: String = (0..200_000u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .map(|b| char::from(b'a' + b % 26))
        .collect();
    let base = TarBuilder::default()
        .dir("usr/")
        .dir("usr/share/")
        .raw("usr/share/noise", EntryType::Regular, |h| h.set_mtime(1_500_000_000), noise.as_bytes())
        .raw(
            "usr/bin/su",
            EntryType::Regular,
            |h| {
                h.set_mode(0o4755);
                h.set_uid(7);
                h.set_gid(8);
            },
            b"su",
        )
        .hard_link("usr/bin/su2", "usr/bin/su")
        .symlink("bin", "usr/bin")
        .device("dev/null", EntryType::Char, 1, 3)
        .layer(dir, Compression::Gzip);
    let top = TarBuilder::default()
        .file("bin/hello", "hi")
        .file("usr/bin/.wh.su2", "")
        .layer(dir, Compression::Zstd);
    let config = json!({
        "Env": ["PATH=/usr/bin", "LANG=C"],
        "Entrypoint": ["/bin/hello"],
        "Cmd": ["world"],
        "User": "7:8",
        "WorkingDir": "/usr",
        "StopSignal": "SIGQUIT",
        "ExposedPorts": { "80/tcp": {}, "443/tcp": {} },
        "Volumes": { "/var/lib": {} },
    });
    write_layout(dir, "v1", &[base, top], &config)
}

struct Bench {
    dir: tempfile::TempDir,
    digest: Hash,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let digest = layout(&dir.path().join("oci"));
        Self { dir, digest }
    }

    fn build(&self, where_to: &str, as_root: bool) -> (Built, BlobStore) {
        let layout = LayoutRef { dir: self.dir.path().join("oci"), tag: Some("v1".to_owned()) };
        let store = BlobStore::new(&self.dir.path().join(where_to).join("blobs"));
        let scratch = self.dir.path().join(where_to).join("scratch");
        let built = build_as(&layout, &scratch, &store, &mut Silent, as_root).unwrap();
        let left: Vec<_> = fs::read_dir(&scratch).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [".lock"], "the scratch directory is left clean");
        (built, store)
    }
}

fn image_file(built: &Built, store: &BlobStore, path: &Path) {
    let mut bytes = Vec::new();
    for i in 0..built.manifest.chunks.len() {
        bytes.extend(store.chunk(&built.manifest, i).unwrap());
    }
    assert_eq!(bytes.len() as u64, built.manifest.size_bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_same_image_gives_the_same_manifest_with_and_without_root() {
    if !tools() {
        return;
    }
    let bench = Bench::new();
    let (first, _) = bench.build("one", false);
    let (second, _) = bench.build("two", false);
    assert_eq!(first.hash, second.hash);
    assert_eq!(first.manifest.source, bench.digest);
    if is_root() {
        let (third, _) = bench.build("three", true);
        assert_eq!(first.hash, third.hash);
    }
}

/// The mode in an inode of an EROFS image: two bytes at 4 in the slot of 32 bytes that the tool names
/// (kernel documentation, `filesystems/erofs`).
fn mode_of(image: &Path, path: &str) -> u16 {
    let dump = run_tool("dump.erofs", &[&format!("--path={path}"), image.to_str().unwrap()]).unwrap();
    let slot = dump.split("NID: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let at = slot.parse::<usize>().unwrap() * 32 + 4;
    let bytes = fs::read(image).unwrap();
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[test]
fn the_image_holds_the_files_and_its_verity_tree_holds() {
    if !tools() || !have_tool("fsck.erofs") || !have_tool("dump.erofs") || !have_tool("veritysetup") {
        return;
    }
    let bench = Bench::new();
    let (built, store) = bench.build("one", rustix::process::geteuid().is_root());
    let path = bench.dir.path().join("image");
    image_file(&built, &store, &path);
    let image = path.to_str().unwrap();
    let verity = &built.manifest.verity;
    run_tool(
        "veritysetup",
        &[
            "verify",
            "--no-superblock",
            &format!("--hash-offset={}", verity.data_blocks * 4096),
            &format!("--data-blocks={}", verity.data_blocks),
            "--data-block-size=4096",
            "--hash-block-size=4096",
            "--hash=sha256",
            &format!("--salt={}", hex::encode(verity.salt)),
            image,
            image,
            &verity.root.to_string(),
        ],
    )
    .unwrap();
    // The tools of 1.5 neither show nor extract setuid; the inode has it.
    assert_eq!(mode_of(&path, "/usr/bin/su"), 0o104_755);
    let dump = run_tool("dump.erofs", &["--path=/dev/null", image]).unwrap();
    assert!(dump.contains("char dev"), "{dump}");
    let out = bench.dir.path().join("out");
    run_tool("fsck.erofs", &[&format!("--extract={}", out.display()), image]).unwrap();
    assert_eq!(fs::read_to_string(out.join("usr/bin/hello")).unwrap(), "hi");
    assert!(!out.join("usr/bin/su2").exists());
    assert_eq!(fs::read_link(out.join("bin")).unwrap(), Path::new("usr/bin"));
    if is_root() {
        let su = fs::metadata(out.join("usr/bin/su")).unwrap();
        assert_eq!((su.uid(), su.gid()), (7, 8));
        assert_eq!(fs::metadata(out.join("usr/share/noise")).unwrap().mtime(), 1_500_000_000);
    }
}

#[test]
fn what_an_interrupted_build_left_is_removed_and_one_that_runs_is_not_disturbed() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _lock) = work_dir(dir.path()).unwrap();
    let interrupted = dir.path().join("build-old");
    fs::create_dir_all(interrupted.join("root/sub")).unwrap();
    fs::write(interrupted.join(LOCK), "").unwrap();
    let unrelated = dir.path().join("mine");
    fs::create_dir(&unrelated).unwrap();
    work_dir(dir.path()).unwrap();
    assert!(running.path().exists() && unrelated.exists());
    assert!(!interrupted.exists());
}

#[test]
fn the_makers_defaults_are_kept_and_what_is_lost_is_said() {
    if !tools() {
        return;
    }
    let (built, _) = Bench::new().build("one", false);
    let config = &built.manifest.config;
    assert_eq!(config.entrypoint, ["/bin/hello"]);
    assert_eq!(config.cmd, ["world"]);
    assert_eq!(config.env["PATH"], "/usr/bin");
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("7:8", "/usr"));
    assert_eq!(config.stop_signal, "SIGQUIT");
    assert_eq!(config.exposed_ports, ["443/tcp", "80/tcp"]);
    assert_eq!(built.notes.len(), 1);
    assert!(built.notes[0].starts_with("the image wants a volume at /var/lib"), "{:?}", built.notes);
}

#[test]
fn a_tampered_chunk_is_noticed_when_it_is_read() {
    if !tools() {
        return;
    }
    let (built, store) = Bench::new().build("one", false);
    let chunk = built.manifest.chunks[0].hash;
    let path = store.path(&chunk);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"not the chunk").unwrap();
    let error = store.chunk(&built.manifest, 0).unwrap_err().to_string();
    assert!(error.contains(&format!("{chunk} was altered or damaged")), "{error}");
}

#[test]
fn an_image_made_by_umoci_is_built() {
    if !tools() || !have_tool("umoci") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let oci = dir.path().join("oci");
    let content = dir.path().join("content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("page"), "hello from umoci").unwrap();
    let oci_text = oci.to_str().unwrap();
    let image = format!("{oci_text}:web");
    run_tool("umoci", &["init", "--layout", oci_text]).unwrap();
    run_tool("umoci", &["new", "--image", &image]).unwrap();
    let rootless = if rustix::process::geteuid().is_root() { "--image" } else { "--rootless" };
    let mut insert = vec!["insert", rootless];
    if rootless == "--rootless" {
        insert.push("--image");
    }
    insert.extend([image.as_str(), content.to_str().unwrap(), "/srv"]);
    run_tool("umoci", &insert).unwrap();
    run_tool("umoci", &["config", "--image", &image, "--config.cmd", "/srv/page", "--config.env", "A=b"])
        .unwrap();
    let store = BlobStore::new(&dir.path().join("blobs"));
    let built =
        build_as(&LayoutRef::parse(&image), &dir.path().join("scratch"), &store, &mut Silent, false).unwrap();
    assert_eq!(built.manifest.config.cmd, ["/srv/page"]);
    assert_eq!(built.tag.as_deref(), Some("web"));
    if have_tool("fsck.erofs") {
        let path = dir.path().join("image");
        image_file(&built, &store, &path);
        let out = dir.path().join("out");
        run_tool("fsck.erofs", &[&format!("--extract={}", out.display()), path.to_str().unwrap()]).unwrap();
        assert_eq!(fs::read_to_string(out.join("srv/page")).unwrap(), "hello from umoci");
    }
}

#[test]
fn what_is_no_layout_or_no_such_tag_says_how_to_make_or_choose_one() {
    let bench = Bench::new();
    let open = |text: &str| oci::open(&LayoutRef::parse(text)).err().unwrap().to_string();
    let empty = tempfile::tempdir().unwrap();
    let error = open(empty.path().to_str().unwrap());
    assert!(error.contains("is no OCI image layout, it has no oci-layout: make one with 'umoci'"), "{error}");
    let oci_dir = bench.dir.path().join("oci");
    let error = open(&format!("{}:v2", oci_dir.display()));
    assert!(error.ends_with("has no image tagged 'v2'; it has v1"), "{error}");
}

#[test]
fn a_tampered_manifest_or_foreign_platform_is_refused() {
    let bench = Bench::new();
    let oci_dir = bench.dir.path().join("oci");
    let text = format!("{}:v1", oci_dir.display());
    let manifest = oci_dir.join("blobs/sha256").join(bench.digest.to_string());
    let original = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, original.replace("\"schemaVersion\":2", "\"schemaVersion\":3")).unwrap();
    let error = oci::open(&LayoutRef::parse(&text)).err().unwrap().to_string();
    assert!(error.contains("the layout is damaged, export the image again"), "{error}");

    let other = bench.dir.path().join("arm");
    let layer = TarBuilder::default().file("x", "").layer(&other, Compression::None);
    write_layout(&other, "v1", &[layer], &json!({}));
    // Blobs are content-addressed: replace the platform and all digests above it.
    let error = foreign_platform(&other);
    assert!(error.contains("holds no image for linux/amd64, only linux/arm64"), "{error}");
}

fn foreign_platform(dir: &Path) -> String {
    let mut index: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
    let inner = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": index["manifests"][0]["digest"], "size": index["manifests"][0]["size"],
        "platform": { "os": "linux", "architecture": "arm64" } }] });
    let bytes = serde_json::to_vec(&inner).unwrap();
    let digest = crate::image::testing::write_blob(dir, &bytes);
    index["manifests"][0]["digest"] = json!(format!("sha256:{digest}"));
    index["manifests"][0]["size"] = json!(bytes.len());
    fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    oci::open(&LayoutRef { dir: dir.to_owned(), tag: None }).err().unwrap().to_string()
}
