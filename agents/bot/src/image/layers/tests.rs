use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tar::EntryType;
use tempfile::TempDir;

use super::*;
use crate::image::testing::TarBuilder;
use crate::testing::is_root;

/// A layout's directory and a tree that layers are unpacked into.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn layer(&self, tar: TarBuilder) -> Layer {
        tar.layer(self.dir.path(), Compression::None)
    }

    fn unpack(&self, layers: &[Layer]) -> Result<Tree, String> {
        let mut tree = Tree::new(&self.root()).unwrap();
        let chain = |e: LayerError| crate::exit::Failure::failed(e).message();
        unpack(layers, &mut tree, &mut |_| {}).map_err(chain)?;
        tree.finish().unwrap();
        Ok(tree)
    }

    fn unpack_tars(&self, tars: Vec<TarBuilder>) -> Result<Tree, String> {
        let layers: Vec<Layer> = tars.into_iter().map(|t| self.layer(t)).collect();
        self.unpack(&layers)
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root().join(path)).ok()
    }
}

fn tar() -> TarBuilder {
    TarBuilder::default()
}

#[test]
fn layers_of_every_compression_are_unpacked_in_order() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    let layers = [
        tar().file("a", "1").file("b", "1").file("c", "1").layer(dir, Compression::None),
        tar().file("b", "2").file("c", "2").layer(dir, Compression::Gzip),
        tar().file("c", "3").layer(dir, Compression::Zstd),
    ];
    let mut read = 0;
    let mut tree = Tree::new(&bench.root()).unwrap();
    unpack(&layers, &mut tree, &mut |n| read += n).unwrap();
    let at = |p: &str| bench.read(p).unwrap();
    assert_eq!((at("a"), at("b"), at("c")), ("1".into(), "2".into(), "3".into()));
    assert_eq!(read, 2 * layers.iter().map(|l| l.size_bytes).sum::<u64>());
}

#[test]
fn a_whiteout_hides_what_lies_below_and_nothing_of_its_own_layer() {
    let bench = Bench::new();
    bench
        .unpack_tars(vec![
            tar().file("etc/gone", "1").file("etc/kept", "1").file("dir/x/y", "1").file("opaque/old", "1"),
            // The whiteouts come last, and again first: where they stand must not matter.
            tar()
                .file("etc/.wh.gone", "")
                .file("dir/.wh.x", "")
                .file("opaque/new", "2")
                .file("opaque/.wh..wh..opq", "")
                .file("etc/new", "2")
                .file("etc/.wh.new", ""),
        ])
        .unwrap();
    assert_eq!(bench.read("etc/gone"), None);
    assert_eq!(bench.read("etc/kept").unwrap(), "1");
    assert!(!bench.root().join("dir/x").exists());
    assert_eq!(bench.read("opaque/old"), None);
    assert_eq!(bench.read("opaque/new").unwrap(), "2");
    assert_eq!(bench.read("etc/new").unwrap(), "2");
    assert!(!bench.root().join("etc/.wh.gone").exists());
}

#[test]
fn a_path_that_climbs_is_refused_by_name() {
    for (tars, culprit) in [
        (tar().file("../escape", "x"), "'../escape'"),
        (tar().file("a/../../escape", "x"), "'a/../../escape'"),
        (tar().file("ok", "x").hard_link("l", "../../etc/passwd"), "'../../etc/passwd'"),
        (tar().file("dir/.wh...", "x"), "'/dir'"),
    ] {
        let bench = Bench::new();
        let error = bench.unpack_tars(vec![tars]).err().expect("must be refused");
        assert!(error.contains(culprit) && error.contains("hostile or broken"), "{error}");
        assert!(error.starts_with("layer 1 ("), "{error}");
        assert!(!bench.dir.path().join("escape").exists());
    }
}

#[test]
fn links_never_lead_out_of_the_tree() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let outside_text = outside.to_str().unwrap().to_owned();
    bench
        .unpack_tars(vec![
            tar()
                .symlink("abs", &outside_text)
                .symlink("climb", "../../../../../../../../../../../../tmp")
                .symlink("victim-link", &format!("{outside_text}/victim")),
            tar()
                .dir(outside_text.trim_start_matches('/'))
                .file("abs/victim", "inside")
                .file("tmp/x", "1")
                .file("climb/y", "2")
                .file("victim-link", "replaced"),
        ])
        .unwrap();
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
    // The absolute link was followed, but inside.
    let inside = bench.root().join(outside_text.trim_start_matches('/')).join("victim");
    assert_eq!(fs::read_to_string(inside).unwrap(), "inside");
    assert_eq!(bench.read("tmp/y").unwrap(), "2");
    assert!(!fs::symlink_metadata(bench.root().join("victim-link")).unwrap().is_symlink());
    assert!(!Path::new("/tmp/y").exists() || fs::read_to_string("/tmp/y").unwrap() != "2");
}

#[test]
fn a_whiteout_through_a_link_removes_nothing_outside() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let text = outside.to_str().unwrap();
    bench
        .unpack_tars(vec![
            tar().symlink("abs", text),
            tar().file("abs/.wh.victim", "").file("abs/.wh..wh..opq", ""),
        ])
        .unwrap();
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
}

#[test]
fn a_parent_that_is_a_dangling_link_or_a_file_is_a_contradiction() {
    let bench = Bench::new();
    let error = bench.unpack_tars(vec![tar().symlink("l", "/nowhere").file("l/x", "")]).err().unwrap();
    assert!(error.contains("/l leads through a link to nothing"), "{error}");
    let bench = Bench::new();
    let error = bench.unpack_tars(vec![tar().file("f", "").file("f/x", "")]).err().unwrap();
    assert!(error.contains("/f leads through something that is no directory"), "{error}");
}

#[test]
fn a_new_version_of_a_file_leaves_its_hard_links_alone() {
    let bench = Bench::new();
    bench
        .unpack_tars(vec![
            tar().file("a", "old").hard_link("b", "a").hard_link("b", "./b"),
            tar().file("a", "new").hard_link("sub/c", "/b"),
        ])
        .unwrap();
    assert_eq!(bench.read("a").unwrap(), "new");
    assert_eq!(bench.read("b").unwrap(), "old");
    let inode = |p: &str| fs::metadata(bench.root().join(p)).unwrap().ino();
    assert_eq!(inode("b"), inode("sub/c"));
}

#[test]
fn a_hard_link_to_nothing_is_named_with_its_target() {
    let bench = Bench::new();
    let error = bench.unpack_tars(vec![tar().hard_link("l", "missing/file")]).err().unwrap();
    assert!(error.contains("/l is a hard link to /missing/file, which does not exist"), "{error}");
}

#[test]
fn files_and_directories_replace_each_other_and_directories_merge() {
    let bench = Bench::new();
    bench
        .unpack_tars(vec![
            tar().dir("d").file("d/kept", "1").file("to-dir", "x").file("to-file/below", "x"),
            tar().dir("d").file("d/added", "2").dir("to-dir").file("to-file", "now a file"),
        ])
        .unwrap();
    assert_eq!(bench.read("d/kept").unwrap(), "1");
    assert_eq!(bench.read("d/added").unwrap(), "2");
    assert!(bench.root().join("to-dir").is_dir());
    assert_eq!(bench.read("to-file").unwrap(), "now a file");
}

#[test]
fn owners_modes_times_devices_and_attributes_are_kept() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let tars = tar()
        .raw(
            "bin/su",
            EntryType::Regular,
            |h| {
                h.set_mode(0o4755);
                h.set_uid(33);
                h.set_gid(44);
                h.set_mtime(99);
            },
            b"x",
        )
        .device("dev/null", EntryType::Char, 1, 3)
        .device("dev/sda", EntryType::Block, 8, 0)
        .raw("run/pipe", EntryType::Fifo, |_| {}, b"")
        .raw(
            "tmp",
            EntryType::Directory,
            |h| {
                h.set_mode(0o1777);
                h.set_mtime(77);
            },
            b"",
        )
        .file("tmp/late", "changes the directory's time")
        .raw(
            "link",
            EntryType::Symlink,
            |h| {
                h.set_uid(5);
                h.set_link_name("x").unwrap();
            },
            b"",
        );
    bench.unpack_tars(vec![tars]).unwrap();
    let meta = |p: &str| fs::symlink_metadata(bench.root().join(p)).unwrap();
    let su = meta("bin/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 33, 44, 99));
    let null = meta("dev/null");
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    assert!(meta("dev/sda").file_type().is_block_device());
    assert!(meta("run/pipe").file_type().is_fifo());
    assert_eq!((meta("tmp").permissions().mode() & 0o7777, meta("tmp").mtime()), (0o1777, 77));
    // Nobody described it: fixed, not the builder's.
    assert_eq!((meta("bin").permissions().mode() & 0o7777, meta("bin").mtime()), (0o755, 0));
    assert_eq!(meta("link").uid(), 5);
}

#[test]
fn attributes_that_mean_something_to_the_overlay_are_refused() {
    let bench = Bench::new();
    let error =
        bench.unpack_tars(vec![tar().file_with_xattr("f", "trusted.overlay.opaque", "y")]).err().unwrap();
    assert!(error.contains("/f has the attribute 'trusted.overlay.opaque'"), "{error}");
}

#[test]
fn a_tampered_layer_is_refused_before_anything_is_made_of_it() {
    let bench = Bench::new();
    let good = bench.layer(tar().file("a", "content"));
    let mut bytes = fs::read(&good.path).unwrap();
    bytes[512] ^= 1;
    fs::write(&good.path, &bytes).unwrap();
    let error = bench.unpack(std::slice::from_ref(&good)).err().unwrap();
    assert!(
        error.starts_with(&format!("layer 1 ({}) can't be used: its bytes have the digest", good.digest)),
        "{error}"
    );
    assert!(!bench.root().join("a").exists());
}

#[test]
fn wrong_sizes_archives_and_compression_are_told_apart() {
    let bench = Bench::new();
    let good = tar().file("a", "content").layer(bench.dir.path(), Compression::Gzip);
    let wrong_size = Layer { size_bytes: 7, ..good.clone() };
    let error = bench.unpack(&[wrong_size]).err().unwrap();
    assert!(error.contains("where the manifest announces 7: export the image again"), "{error}");
    let wrong_archive = Layer { diff_id: Hash::ZERO, ..good.clone() };
    let error = bench.unpack(&[wrong_archive]).err().unwrap();
    assert!(error.contains("but the image's configuration says 0000"), "{error}");
    let wrong_type = Layer { compression: Compression::Zstd, ..good.clone() };
    let error = bench.unpack(&[wrong_type]).err().unwrap();
    assert!(error.contains("it can't be decompressed"), "{error}");
    let gone = Layer { path: "/nonexistent".into(), ..good };
    let error = bench.unpack(&[gone]).err().unwrap();
    assert!(error.contains("its blob /nonexistent can't be opened"), "{error}");
}

#[test]
fn directories_without_end_are_refused() {
    let bench = Bench::new();
    let name = "d/".repeat(40);
    // Each link leads to the end of the previous chain, so that short paths nest ever deeper.
    let mut layer = tar().dir(&name);
    let mut end = name.trim_end_matches('/').to_owned();
    for i in 0..10 {
        layer = layer.symlink(&format!("s{i}"), &end).dir(&format!("s{i}/{name}"));
        end = format!("s{i}/{}", name.trim_end_matches('/'));
    }
    let layers = [bench.layer(layer)];
    let mut tree = Tree::new(&bench.root()).unwrap();
    unpack(&layers, &mut tree, &mut |_| {}).unwrap();
    let error = tree.finish().unwrap_err().to_string();
    assert_eq!(error, "directories are nested more than 256 deep at 'd'");
}
