use super::*;
use crate::power_cut::Disk;

const FOLDER: &str = "/data/cache";

fn on(disk: &Disk, quota_bytes: u64) -> Cache {
    Cache::open_on(Arc::new(disk.clone()), Path::new(FOLDER), quota_bytes).unwrap()
}

fn blob(name: u8, length: usize) -> (Digest, Vec<u8>) {
    let bytes = vec![name; length];
    (Digest::of(&bytes), bytes)
}

fn put(cache: &Cache, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    cache.put(&digest, bytes.len() as u64, &mut &bytes[..]).unwrap();
    digest
}

#[test]
fn blobs_are_found_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 1 << 20).unwrap();
    let (digest, bytes) = blob(1, 700_000);
    assert_eq!(cache.get(&digest).unwrap(), None);
    let path = cache.put(&digest, bytes.len() as u64, &mut &bytes[..]).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    let cache = Cache::open(folder.path(), 1 << 20).unwrap();
    assert_eq!(cache.get(&digest).unwrap().unwrap(), bytes);
    assert_eq!(
        cache.usage(),
        Usage { entries: 1, used_bytes: 700_000, pinned_bytes: 0, quota_bytes: 1 << 20 }
    );
}

#[test]
fn bytes_that_lie_about_their_digest_are_refused_and_leave_nothing() {
    let disk = Disk::default();
    let cache = on(&disk, 1 << 20);
    let (digest, _) = blob(1, 100);
    let error = cache.put(&digest, 100, &mut &[2; 100][..]).unwrap_err();
    assert!(error.to_string().contains("it was changed on the way, fetch it from somebody else"), "{error}");
    let error = cache.put(&digest, 100, &mut &[1; 101][..]).unwrap_err().to_string();
    assert!(error.contains("is longer than the 100 bytes it should have"), "{error}");
    let error = cache.put(&digest, 100, &mut &[1; 99][..]).unwrap_err().to_string();
    assert!(error.contains("ended after 99 of 100 bytes"), "{error}");
    assert_eq!(disk.paths(), [""; 0].map(PathBuf::from));
    assert_eq!(cache.usage().used_bytes, 0);
    put(&cache, &[1; 100]);
}

#[test]
fn a_source_without_end_is_cut_off() {
    let cache = on(&Disk::default(), 1 << 20);
    let (digest, _) = blob(1, 100);
    assert!(matches!(cache.put(&digest, 100, &mut io::repeat(1)), Err(PutBlobError::TooLong { .. })));
}

#[test]
fn a_damaged_blob_is_removed_reported_and_can_be_fetched_again() {
    let disk = Disk::default();
    let cache = on(&disk, 1 << 20);
    let digest = put(&cache, &[7; 10_000]);
    cache.pin(&digest);
    disk.damage(&cache.path(&digest));
    let error = cache.get(&digest).unwrap_err();
    assert!(matches!(error, GetBlobError::Damaged { .. }), "{error}");
    assert!(error.to_string().ends_with("it is removed and has to be fetched again"), "{error}");
    assert_eq!(cache.get(&digest).unwrap(), None);
    assert!(cache.verified_path(&digest).unwrap().is_none());
    put(&cache, &[7; 10_000]);
    assert_eq!(cache.get(&digest).unwrap().unwrap(), [7; 10_000]);
    assert_eq!(cache.usage().pinned_bytes, 10_000, "its pin was for the digest, not for the file");
}

#[test]
fn what_was_used_longest_ago_makes_room() {
    let cache = on(&Disk::default(), 3_000);
    let [a, b, c] = [1, 2, 3].map(|name| put(&cache, &[name; 1_000]));
    cache.get(&a).unwrap();
    let d = put(&cache, &[4; 1_000]);
    assert_eq!([a, b, c, d].map(|digest| cache.contains(&digest)), [true, false, true, true]);
    assert_eq!(cache.usage().used_bytes, 3_000);
}

#[test]
fn the_order_of_use_survives_a_restart() {
    let disk = Disk::default();
    let cache = on(&disk, 3_000);
    let [a, b, c] = [1, 2, 3].map(|name| put(&cache, &[name; 1_000]));
    cache.get(&a).unwrap();
    let cache = on(&disk, 3_000);
    put(&cache, &[4; 1_500]);
    assert_eq!([a, b, c].map(|digest| cache.contains(&digest)), [true, false, false]);
}

#[test]
fn pinned_blobs_never_make_room() {
    let cache = on(&Disk::default(), 3_000);
    let [a, b, c] = [1, 2, 3].map(|name| put(&cache, &[name; 1_000]));
    cache.pin(&a);
    cache.pin(&a);
    cache.pin(&b);
    let (large, bytes) = blob(9, 1_500);
    let error = cache.put(&large, 1_500, &mut &bytes[..]).unwrap_err();
    assert!(matches!(error, PutBlobError::Quota { pinned_bytes: 2_000, .. }), "{error}");
    assert!(error.to_string().contains("end some of them or give the node a larger disk"), "{error}");
    assert!(cache.contains(&c), "nothing is evicted for what would not fit anyway");
    cache.unpin(&a);
    assert!(cache.put(&large, 1_500, &mut &bytes[..]).is_err(), "still pinned once");
    cache.unpin(&a);
    cache.put(&large, 1_500, &mut &bytes[..]).unwrap();
    assert!(cache.contains(&b) && !cache.contains(&a));
}

#[test]
fn a_pin_ahead_of_the_blob_holds_when_it_comes() {
    let cache = on(&Disk::default(), 2_000);
    let (digest, bytes) = blob(1, 1_000);
    cache.pin(&digest);
    put(&cache, &bytes);
    put(&cache, &[2; 1_000]);
    put(&cache, &[3; 1_000]);
    assert!(cache.contains(&digest));
}

#[test]
fn a_full_disk_is_an_error_with_a_remedy_and_makes_room_for_the_next_attempt() {
    let disk = Disk::default();
    let cache = on(&disk, 1 << 30);
    put(&cache, &[1; 1_000]);
    disk.limit_room(1_500);
    let (digest, bytes) = blob(2, 1_000);
    let error = cache.put(&digest, 1_000, &mut &bytes[..]).unwrap_err();
    assert!(matches!(error, PutBlobError::Full { .. }), "{error}");
    assert!(error.to_string().ends_with("end contracts of this node or give it a larger disk"), "{error}");
    cache.put(&digest, 1_000, &mut &bytes[..]).unwrap();
}

#[test]
fn a_power_cut_at_any_step_leaves_whole_blobs_or_none() {
    let (old, new) = (blob(1, 3_000), blob(2, 3_000));
    for step in 0.. {
        let disk = Disk::default();
        put(&on(&disk, 5_000), &old.1);
        let cache = on(&disk, 5_000);
        disk.cut_after(step);
        // Does not fit beside the old one, so an eviction is among the steps.
        let done = cache.put(&new.0, 3_000, &mut &new.1[..]).is_ok();
        let steps = disk.operations();
        for seed in 0..64 {
            let boot = disk.after_the_cut(seed);
            let cache = on(&boot, 1 << 20);
            for (digest, bytes) in [&old, &new] {
                let found =
                    cache.get(digest).unwrap_or_else(|error| panic!("step {step}, seed {seed}: {error}"));
                assert!(found.is_none() || found.as_ref() == Some(bytes), "step {step}, seed {seed}");
            }
            if done {
                assert!(cache.contains(&new.0), "step {step}, seed {seed}: a blob that was put is lost");
            }
            assert!(boot.paths().iter().all(|path| !path.starts_with("/data/cache/new")), "a rest is left");
        }
        if done {
            assert!(steps >= 5, "{steps} steps");
            break;
        }
    }
}

#[test]
fn two_threads_may_put_the_same_blob() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 1 << 20).unwrap();
    let (digest, bytes) = blob(5, 100_000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| cache.put(&digest, 100_000, &mut &bytes[..]).unwrap());
        }
    });
    assert_eq!(cache.get(&digest).unwrap().unwrap(), bytes);
    assert_eq!(cache.usage().used_bytes, 100_000);
    assert_eq!(std::fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
}
