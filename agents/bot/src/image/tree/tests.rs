use super::*;
use crate::testing::{have_tool, run_tool};

#[test]
fn paths_are_cleaned_or_refused() {
    let clean = |p: &str| TreePath::new(p.as_bytes()).map(|p| p.to_string());
    assert_eq!(clean("./a//b/./c/").unwrap(), "/a/b/c");
    assert_eq!(clean("/etc/passwd").unwrap(), "/etc/passwd");
    assert_eq!(clean("./").unwrap(), "/");
    assert_eq!(
        clean("a/../b").unwrap_err().to_string(),
        "the path 'a/../b' climbs with '..': the layer is hostile or broken"
    );
    assert!(clean("a\0b").is_err());
    assert!(clean(&"x".repeat(256)).is_err());
}

#[test]
fn without_root_the_truth_stands_in_the_fakeroot_state() {
    if !have_tool("fakeroot") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mut tree = Tree::with_privilege(&root, false).unwrap();
    let attributes = Attributes { mode: 0o4750, uid: 33, gid: 44, mtime_s: 7 };
    let path = |p: &str| TreePath::new(p.as_bytes()).unwrap();
    tree.file::<TreeError>(&path("sub/f"), &attributes, &BTreeMap::new(), |write| write(b"hello")).unwrap();
    tree.special(&path("dev"), FileType::CharacterDevice, (1, 3), &attributes).unwrap();
    tree.hard_link(&path("h"), &path("sub/f")).unwrap();
    tree.finish().unwrap();
    let state = dir.path().join("state");
    std::fs::write(&state, tree.fakeroot_state().unwrap().unwrap()).unwrap();
    let stat = |p: &str| {
        let file = root.join(p);
        let args =
            ["-i", state.to_str().unwrap(), "--", "stat", "-c", "%a %u %g %h %t:%T", file.to_str().unwrap()];
        run_tool("fakeroot", &args).unwrap().trim().to_owned()
    };
    assert_eq!(stat("sub/f"), "4750 33 44 2 0:0");
    assert_eq!(stat("h"), "4750 33 44 2 0:0");
    assert_eq!(stat("dev"), "4750 33 44 1 1:3");
    assert_eq!(stat("sub"), "755 0 0 2 0:0");
    assert_eq!(stat("."), "755 0 0 3 0:0");
}

#[test]
fn a_scratch_directory_that_labels_its_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let set = rustix::fs::setxattr(dir.path(), c"user.label", b"x", rustix::fs::XattrFlags::empty());
    if set.is_err() {
        eprintln!("skipped: no extended attributes on {}", dir.path().display());
        return;
    }
    let error = Tree::new(dir.path()).err().unwrap().to_string();
    assert!(error.contains("gives its files the attribute 'user.label'"), "{error}");
    assert!(error.ends_with("choose another place with --scratch"), "{error}");
}
