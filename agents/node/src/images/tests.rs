use super::*;
use croft_protocol::image::{Chunk, ImageConfig};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// A replica in memory that can lose and falsify blobs, and counts what is asked of it.
#[derive(Default)]
struct Blobs {
    blobs: Mutex<BTreeMap<Hash, Vec<u8>>>,
    asked: Mutex<Vec<Hash>>,
}

impl Blobs {
    fn put(&self, bytes: Vec<u8>) -> Hash {
        let hash = Hash::of_bytes(&bytes);
        self.blobs.lock().unwrap().insert(hash, bytes);
        hash
    }
}

impl BlobSource for Blobs {
    async fn blob(&self, hash: Hash) -> Result<Vec<u8>, String> {
        self.asked.lock().unwrap().push(hash);
        self.blobs.lock().unwrap().get(&hash).cloned().ok_or_else(|| "nobody has it".to_owned())
    }
}

/// `data || tree` of so many data blocks, by the kernel's documentation rather than by the code under test.
fn verity_file(data_blocks: u64, salt: [u8; 32]) -> (Vec<u8>, Hash) {
    let data: Vec<u8> = (0..data_blocks * BLOCK_BYTES).map(|i| (i / 7 + i / 1_000_003) as u8).collect();
    let hash = |block: &[u8]| {
        let mut all = salt.to_vec();
        all.extend_from_slice(block);
        Sha256::digest(&all).to_vec()
    };
    let mut levels: Vec<Vec<u8>> = vec![];
    let mut below = data.clone();
    loop {
        let mut level: Vec<u8> = below.chunks(BLOCK_BYTES as usize).flat_map(hash).collect();
        level.resize(level.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        let top = level.len() == BLOCK_BYTES as usize;
        below.clone_from(&level);
        levels.push(level);
        if top {
            break;
        }
    }
    let root = Hash(hash(&levels[levels.len() - 1]).try_into().unwrap());
    let file = levels.into_iter().rev().fold(data, |mut file, level| {
        file.extend_from_slice(&level);
        file
    });
    (file, root)
}

fn publish(blobs: &Blobs, file: &[u8], root: Hash, data_blocks: u64) -> Hash {
    let chunks = file
        .chunks(limits::CHUNK_BYTES)
        .map(|chunk| {
            let packed = zstd::bulk::compress(chunk, 1).unwrap();
            Chunk { compressed_bytes: packed.len() as u32, hash: blobs.put(packed) }
        })
        .collect();
    let manifest = ImageManifest {
        version: 1,
        verity: Verity { data_blocks, root, salt: [5; 32] },
        size_bytes: file.len() as u64,
        chunks,
        config: ImageConfig::default(),
        source: Hash::ZERO,
    };
    blobs.put(croft_protocol::encode(&manifest))
}

#[tokio::test]
async fn an_image_is_fetched_verified_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 30).unwrap();
    let blobs = Blobs::default();
    let (file, root) = verity_file(700, [5; 32]);
    let hash = publish(&blobs, &file, root, 700);
    assert!(store.get(hash).is_none());
    let image = store.fetch(hash, &blobs, |_, _| {}).await.unwrap();
    assert_eq!(fs::read(&image.path).unwrap(), file);
    assert!(ImageStore::verify(&image).unwrap());
    let asked = blobs.asked.lock().unwrap().len();
    store.fetch(hash, &blobs, |_, _| {}).await.unwrap();
    assert_eq!(blobs.asked.lock().unwrap().len(), asked, "a kept image is not fetched again");
}

#[tokio::test]
async fn a_tampered_chunk_is_named_and_the_right_one_heals() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 30).unwrap();
    let blobs = Blobs::default();
    let (file, root) = verity_file(700, [5; 32]);
    let hash = publish(&blobs, &file, root, 700);
    let manifest = ImageManifest::check(&blobs.blobs.lock().unwrap()[&hash], hash).unwrap();
    let victim = manifest.chunks[1].hash;
    let good = blobs.blobs.lock().unwrap()[&victim].clone();
    blobs.blobs.lock().unwrap().get_mut(&victim).unwrap()[10] ^= 1;
    let error = store.fetch(hash, &blobs, |_, _| {}).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("chunk 1 of image {hash} is not {victim}")), "{error}");
    assert!(!error.is_final());
    assert!(store.get(hash).is_none());
    blobs.blobs.lock().unwrap().insert(victim, good);
    assert!(store.fetch(hash, &blobs, |_, _| {}).await.is_ok());
}

#[tokio::test]
async fn a_manifest_of_another_image_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 30).unwrap();
    let blobs = Blobs::default();
    let (file, root) = verity_file(3, [5; 32]);
    let hash = publish(&blobs, &file, root, 3);
    let other = Hash([9; 32]);
    let bytes = blobs.blobs.lock().unwrap()[&hash].clone();
    blobs.blobs.lock().unwrap().insert(other, bytes);
    let error = store.fetch(other, &blobs, |_, _| {}).await.unwrap_err();
    assert!(error.to_string().contains("is not what was asked for"), "{error}");
}

#[tokio::test]
async fn a_wrong_verity_root_is_final_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 30).unwrap();
    let blobs = Blobs::default();
    let (file, _) = verity_file(3, [5; 32]);
    let hash = publish(&blobs, &file, Hash([1; 32]), 3);
    let error = store.fetch(hash, &blobs, |_, _| {}).await.unwrap_err();
    assert!(error.to_string().contains("does not belong to its bytes"), "{error}");
    assert!(error.is_final());
}

#[tokio::test]
async fn a_missing_chunk_is_tried_again_from_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 30).unwrap();
    let blobs = Blobs::default();
    let blocks = (SYNC_CHUNKS as u64 + 4) * limits::CHUNK_BYTES as u64 / BLOCK_BYTES;
    let (file, root) = verity_file(blocks, [5; 32]);
    let hash = publish(&blobs, &file, root, blocks);
    let manifest = ImageManifest::check(&blobs.blobs.lock().unwrap()[&hash], hash).unwrap();
    let missing = manifest.chunks[SYNC_CHUNKS + 1].hash;
    let bytes = blobs.blobs.lock().unwrap().remove(&missing).unwrap();
    let error = store.fetch(hash, &blobs, |_, _| {}).await.unwrap_err();
    assert!(error.to_string().ends_with("nobody has it"), "{error}");
    blobs.put(bytes);
    blobs.asked.lock().unwrap().clear();
    let image = store.fetch(hash, &blobs, |_, _| {}).await.unwrap();
    assert!(!blobs.asked.lock().unwrap().contains(&manifest.chunks[0].hash), "the first chunks were kept");
    assert!(ImageStore::verify(&image).unwrap());
}

#[tokio::test]
async fn damage_on_the_disk_is_found_and_the_file_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 30).unwrap();
    let blobs = Blobs::default();
    let (file, root) = verity_file(200, [5; 32]);
    let hash = publish(&blobs, &file, root, 200);
    let image = store.fetch(hash, &blobs, |_, _| {}).await.unwrap();
    let on_disk = OpenOptions::new().write(true).open(&image.path).unwrap();
    on_disk.write_all_at(&[0xff], 150 * BLOCK_BYTES + 17).unwrap();
    assert!(!ImageStore::verify(&image).unwrap());
    assert!(store.get(hash).is_none());
}

#[tokio::test]
async fn images_that_nobody_uses_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path(), 1 << 30).unwrap();
    let blobs = Blobs::default();
    let (file, root) = verity_file(3, [5; 32]);
    let hash = publish(&blobs, &file, root, 3);
    store.fetch(hash, &blobs, |_, _| {}).await.unwrap();
    assert_eq!(store.remove_unused(|_| true).unwrap(), 0);
    assert!(store.remove_unused(|h| h != hash).unwrap() > file.len() as u64);
    assert!(store.get(hash).is_none());
}

#[tokio::test]
async fn images_stay_within_what_is_set_aside_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::default();
    let (file, root) = verity_file(3, [5; 32]);
    let hash = publish(&blobs, &file, root, 3);
    let store = ImageStore::open(dir.path(), file.len() as u64 + 1000).unwrap();
    fs::write(dir.path().join(format!("{}.img", Hash([7; 32]))), [0; 2000]).unwrap();
    let error = store.fetch(hash, &blobs, |_, _| {}).await.unwrap_err();
    assert!(error.to_string().contains("beside the 2000 bytes of images"), "{error}");
    assert!(!error.is_final(), "it fits when others are gone");
    assert!(
        ImageStore::open(dir.path(), 5).unwrap().fetch(hash, &blobs, |_, _| {}).await.unwrap_err().is_final()
    );
    store.remove_unused(|_| false).unwrap();
    assert!(store.fetch(hash, &blobs, |_, _| {}).await.is_ok());
}
