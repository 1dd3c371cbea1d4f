//! The farm's addition, from the medium that the machine booted from.
//!
//! ```text
//!   disks ──GPT: EFI system partition──> FAT ──CROFT/FARM.BIN──> bytes ──Validated──> boot configuration
//! ```
//! Everything on a medium is a stranger's word until the addition's signatures and form were checked, so it is read here
//! and not by the kernel's file systems, with bounds on all of it. Media are only read. It must never take one of two
//! additions that differ: the machine would belong to whoever plugged in a stick.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_protocol::addition::{Expectation, InvalidAddition, Validated};
use croft_protocol::limits;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Disks that are looked at: more are no boot media.
const DISKS: usize = 64;
/// Entries of a partition table that are looked at (UEFI 2.10, section 5.3: at least 128 are there).
const PARTITIONS: usize = 128;
const BLOCK_BYTES: u64 = 512;
/// What a healthy disk takes many times over.
const ROUND: Duration = Duration::from_secs(3);
/// Entries of a folder that are looked at: those of a boot medium fit into one cluster.
const FOLDER_BYTES: usize = 64 * 1024;
/// Cluster numbers from here on end a chain, or stand for a bad cluster.
const END_OF_CHAIN: u32 = 0x0fff_fff7;
const FOLDER: &str = "CROFT";
const FILE: &str = "FARM.BIN";
/// Of an EFI system partition, as it lies in the table.
const ESP_TYPE: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

/// Why no disk has an addition.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    #[error("no disk has a farm's addition ({looked})")]
    None { looked: String },
    #[error("the farm's addition on {disk} is refused")]
    Refused { disk: PathBuf, source: Box<InvalidAddition> },
    #[error(
        "the additions on {one} and on {other} are not the same: take out the medium that is not this machine's"
    )]
    Ambiguous { one: PathBuf, other: PathBuf },
}

/// Where the kernel shows disks; another place in tests.
#[derive(Debug, Clone)]
pub struct Roots {
    pub sys: PathBuf,
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys/block".into(), dev: "/dev".into() }
    }
}

/// What a disk says: the addition's bytes, if it has one.
type Answer = io::Result<Option<Vec<u8>>>;

/// Looks at disks, each on a thread of its own: one that is dying may keep whoever reads it for minutes, and must keep
/// neither the others nor the boot.
#[derive(Debug)]
pub struct Looker {
    roots: Roots,
    /// For all disks together, at one look.
    round: Duration,
    /// Disks that have not answered yet, since when.
    asked: BTreeMap<PathBuf, (Instant, oneshot::Receiver<Answer>)>,
}

impl Looker {
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self { roots, round: ROUND, asked: BTreeMap::new() }
    }

    /// The addition on this machine's disks, as they are now. Takes [`ROUND`] at most: a disk that is slower is not
    /// asked again before it answers, and its answer counts then.
    ///
    /// # Errors
    /// [`MediumError`] says what is on the disks.
    pub async fn look(&mut self) -> Result<(PathBuf, Validated), MediumError> {
        self.look_with(|disk| File::open(disk).and_then(|mut file| addition(&mut file))).await
    }

    /// Disks that have not answered the last look.
    pub fn unanswered(&self) -> impl Iterator<Item = &Path> {
        self.asked.keys().map(PathBuf::as_path)
    }

    async fn look_with(
        &mut self,
        read: impl Fn(&Path) -> Answer + Clone + Send + 'static,
    ) -> Result<(PathBuf, Validated), MediumError> {
        let disks = disks(&self.roots);
        self.asked.retain(|disk, _| disks.contains(disk));
        for disk in &disks {
            self.asked
                .entry(disk.clone())
                .or_insert_with(|| (Instant::now(), ask(disk.clone(), read.clone())));
        }
        let deadline = Instant::now() + self.round;
        let mut answers = Vec::new();
        for disk in disks {
            let Some((since, answer)) = self.asked.get_mut(&disk) else { continue };
            if let Ok(answer) = timeout_at(deadline, answer).await {
                self.asked.remove(&disk);
                let gone = || Err(io::Error::other("it can't be asked: no thread for it"));
                answers.push((disk, answer.unwrap_or_else(|_| gone())));
            } else {
                let text = format!("no answer for {} s: is it broken?", since.elapsed().as_secs());
                answers.push((disk, Err(io::Error::new(io::ErrorKind::TimedOut, text))));
            }
        }
        judge(answers)
    }
}

/// The thread ends when the disk answers, whoever still waits for that.
fn ask(disk: PathBuf, read: impl Fn(&Path) -> Answer + Send + 'static) -> oneshot::Receiver<Answer> {
    let (sender, receiver) = oneshot::channel();
    // Where there is no thread to be had, the sender is gone, and the disk is told as not asked.
    let _ = std::thread::Builder::new().name("look at disk".into()).spawn(move || {
        let _ = sender.send(read(&disk));
    });
    receiver
}

/// The one addition of all answers. What does not check keeps nothing good away.
fn judge(answers: Vec<(PathBuf, Answer)>) -> Result<(PathBuf, Validated), MediumError> {
    let mut found: Option<(PathBuf, Validated)> = None;
    let mut refused = None;
    let mut looked = Vec::new();
    for (disk, answer) in answers {
        let opened = match answer {
            Ok(Some(bytes)) => Validated::open(&bytes, &Expectation::default()),
            Ok(None) => {
                looked.push(format!("{}: none", disk.display()));
                continue;
            }
            Err(error) => {
                looked.push(format!("{}: {error}", disk.display()));
                continue;
            }
        };
        match (opened, &found) {
            (Err(source), _) => {
                refused.get_or_insert(MediumError::Refused { disk, source: Box::new(source) });
            }
            (Ok(addition), Some((one, before))) => {
                if before.get() != addition.get() {
                    return Err(MediumError::Ambiguous { one: one.clone(), other: disk });
                }
            }
            (Ok(addition), None) => found = Some((disk, addition)),
        }
    }
    let looked = if looked.is_empty() { "there is no disk".to_owned() } else { looked.join(", ") };
    found.ok_or_else(|| refused.unwrap_or(MediumError::None { looked }))
}

/// Whether a disk can be taken out, as what a machine is booted from can. A built-in one may hold what an earlier owner
/// left.
#[must_use]
pub fn is_removable(roots: &Roots, disk: &Path) -> bool {
    let Ok(name) = disk.strip_prefix(&roots.dev) else { return false };
    let entry = roots.sys.join(name.to_string_lossy().replace('/', "!"));
    let says = fs::read_to_string(entry.join("removable")).is_ok_and(|text| text.trim() == "1");
    // Sticks often say that they are built in.
    let by_usb = || fs::canonicalize(&entry).is_ok_and(|path| path.to_string_lossy().contains("/usb"));
    says || by_usb()
}

/// Whole disks: first what can be taken out, then by name. What is built on others, or in memory, is no boot medium.
fn disks(roots: &Roots) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(&roots.sys) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .take(4 * DISKS)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !["loop", "ram", "zram", "dm-", "md"].iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    let mut disks: Vec<PathBuf> =
        names.into_iter().map(|name| roots.dev.join(name.replace('!', "/"))).collect();
    disks.sort_by_key(|disk| !is_removable(roots, disk));
    disks.truncate(DISKS);
    disks
}

/// The addition's file on a disk; `None` where the disk is something else.
fn addition(disk: &mut (impl Read + Seek)) -> io::Result<Option<Vec<u8>>> {
    for (first, blocks) in system_partitions(disk)? {
        let Some(mut fat) = Fat::open(&mut *disk, first, blocks)? else { continue };
        let Some(folder) = fat.find(fat.root, FOLDER, true)? else { continue };
        let Some(file) = fat.find(folder.cluster, FILE, false)? else { continue };
        return fat.read(file).map(Some);
    }
    Ok(None)
}

/// A FAT32 file system, as far as it takes to read one small file (Microsoft, "FAT: General Overview of On-Disk
/// Format", 1.03). Ours, because the crates that read FAT trust what they read.
struct Fat<D> {
    disk: D,
    /// In blocks of the disk.
    first: u64,
    blocks: u64,
    table: u64,
    data: u64,
    blocks_per_cluster: u64,
    root: u32,
}

/// What a folder says of a file or a folder.
#[derive(Debug, Clone, Copy)]
struct Found {
    cluster: u32,
    bytes: u32,
}

impl<D: Read + Seek> Fat<D> {
    fn open(mut disk: D, first: u64, blocks: u64) -> io::Result<Option<Self>> {
        let mut boot = [0; BLOCK_BYTES as usize];
        let Some(at) = first.checked_mul(BLOCK_BYTES) else { return Ok(None) };
        disk.seek(SeekFrom::Start(at))?;
        disk.read_exact(&mut boot)?;
        let (per_cluster, copies) = (boot[13], u64::from(boot[16]));
        let (reserved, table_blocks) = (u64::from(u16_at(&boot, 14)), u64::from(u32_at(&boot, 36)));
        let is_fat32 = boot[510..] == [0x55, 0xaa]
            && u64::from(u16_at(&boot, 11)) == BLOCK_BYTES
            && u16_at(&boot, 22) == 0
            && per_cluster.is_power_of_two()
            && (1..=2).contains(&copies)
            && reserved > 0
            && table_blocks > 0;
        let (table, data) = (reserved, reserved + copies * table_blocks);
        if !is_fat32 || data >= blocks {
            return Ok(None);
        }
        let (blocks_per_cluster, root) = (u64::from(per_cluster), u32_at(&boot, 44));
        Ok(Some(Self { disk, first, blocks, table, data, blocks_per_cluster, root }))
    }

    /// Bytes at a block of the partition.
    fn block(&mut self, block: u64) -> io::Result<[u8; BLOCK_BYTES as usize]> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its file system is damaged");
        if block >= self.blocks {
            return Err(damaged());
        }
        let at =
            self.first.checked_add(block).and_then(|b| b.checked_mul(BLOCK_BYTES)).ok_or_else(damaged)?;
        let mut bytes = [0; BLOCK_BYTES as usize];
        self.disk.seek(SeekFrom::Start(at))?;
        self.disk.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The blocks of a chain of clusters, at most so many bytes of them.
    fn chain(&mut self, mut cluster: u32, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while (2..END_OF_CHAIN).contains(&cluster) && bytes.len() < most {
            let start = self.data + u64::from(cluster - 2) * self.blocks_per_cluster;
            for block in start..start + self.blocks_per_cluster {
                bytes.extend_from_slice(&self.block(block)?);
            }
            let entry = u64::from(cluster) * 4;
            let table = self.block(self.table + entry / BLOCK_BYTES)?;
            cluster = u32_at(&table, (entry % BLOCK_BYTES) as usize) & 0x0fff_ffff;
        }
        bytes.truncate(most);
        Ok(bytes)
    }

    /// An entry of a folder by its 8.3 name.
    fn find(&mut self, folder: u32, name: &str, wants_folder: bool) -> io::Result<Option<Found>> {
        let wanted = short_name(name);
        let entries = self.chain(folder, FOLDER_BYTES)?;
        for entry in entries.as_chunks::<32>().0 {
            let (attributes, is_end) = (entry[11], entry[0] == 0);
            if is_end {
                break;
            }
            // Long names and the volume's label look like entries too.
            if entry[..11] == wanted && attributes & 0x08 == 0 && (attributes & 0x10 != 0) == wants_folder {
                let cluster = u32::from(u16_at(entry, 20)) << 16 | u32::from(u16_at(entry, 26));
                return Ok(Some(Found { cluster, bytes: u32_at(entry, 28) }));
            }
        }
        Ok(None)
    }

    /// A file, cut one byte after what an addition may have: so that a longer one is refused as such.
    fn read(&mut self, file: Found) -> io::Result<Vec<u8>> {
        let most = usize::try_from(file.bytes).unwrap_or(usize::MAX).min(limits::ADDITION_BYTES + 1);
        self.chain(file.cluster, most)
    }
}

/// `FARM.BIN` as a folder has it: eight and three letters, filled up with spaces.
fn short_name(name: &str) -> [u8; 11] {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let mut short = [b' '; 11];
    for (to, from) in short[..8].iter_mut().zip(base.bytes()) {
        *to = from;
    }
    for (to, from) in short[8..].iter_mut().zip(extension.bytes()) {
        *to = from;
    }
    short
}

/// First block and number of blocks of each EFI system partition.
fn system_partitions(disk: &mut (impl Read + Seek)) -> io::Result<Vec<(u64, u64)>> {
    let mut header = [0; 92];
    disk.seek(SeekFrom::Start(BLOCK_BYTES))?;
    match disk.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        result => result?,
    }
    if header[..8] != *b"EFI PART" {
        return Ok(Vec::new());
    }
    let (table, count, size) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84));
    if !(128..=4096).contains(&size) || !size.is_power_of_two() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for index in 0..u64::from(count).min(PARTITIONS as u64) {
        let Some(at) = table.checked_mul(BLOCK_BYTES).and_then(|t| t.checked_add(index * u64::from(size)))
        else {
            break;
        };
        let mut entry = [0; 48];
        if disk.seek(SeekFrom::Start(at)).and_then(|_| disk.read_exact(&mut entry)).is_err() {
            break;
        }
        let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
        if entry[..16] == ESP_TYPE && first > 0 && last >= first {
            found.push((first, last - first + 1));
        }
    }
    Ok(found)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|part| part.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Additions of a farm, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use croft_protocol::addition::Addition;
    use croft_protocol::boot::BootConfig;
    use croft_protocol::command::{Join, SignedJoin};
    use croft_protocol::keys::Domain;
    use croft_protocol::{FarmId, Name, SecretKey};

    fn owner() -> SecretKey {
        SecretKey::from_seed(&[7; 32])
    }

    pub(crate) fn sealed(farm: &str) -> (BootConfig, Vec<u8>) {
        let name = Name::new(farm).unwrap();
        let chain = croft_protocol::ChainId(croft_protocol::Hash([3; 32]));
        let join = Join { farm: FarmId::new(&owner().public(), &name), expires_ms: 9, nonce: [1; 16] };
        let signature = owner().sign_as_bot(Domain::JOIN, &chain, &join);
        let key = SecretKey::from_seed(&[8; 32]).public();
        let config = BootConfig {
            grid: croft_protocol::boot::GridPin {
                name: Name::new("demo").unwrap(),
                chain,
                validators: croft_protocol::Hash([4; 32]),
                replicas: vec![croft_protocol::boot::ReplicaAddress {
                    address: "192.0.2.1:4600".parse().unwrap(),
                    key,
                }],
            },
            farm: croft_protocol::boot::FarmJoin::new(name, &SignedJoin { join, signature }),
            node: croft_protocol::boot::NodeSettings { name: None, public_addresses: Vec::new() },
            links: Vec::new(),
            clock: croft_protocol::boot::ClockSettings::default(),
        };
        let bytes = Addition::from_boot(&config, owner().public()).unwrap().seal(&owner()).unwrap();
        (config, bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use croft_media::esp::Contents;
    use croft_media::{iso, usb};

    use super::testing::sealed;
    use super::*;

    /// A machine with these disks.
    fn machine(disks: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { sys: dir.path().join("sys"), dev: dir.path().join("dev") };
        fs::create_dir(&roots.dev).unwrap();
        for (name, bytes) in disks {
            fs::create_dir_all(roots.sys.join(name)).unwrap();
            fs::write(roots.dev.join(name), bytes).unwrap();
        }
        (dir, roots)
    }

    fn stick(addition: &[u8]) -> Vec<u8> {
        usb::image(&Contents { boot_file: b"MZ kernel", addition: Some(addition) }).unwrap().bytes
    }

    async fn look(roots: &Roots) -> Result<(PathBuf, Validated), MediumError> {
        Looker::new(roots.clone()).look().await
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_named_asked_once_and_keeps_nobody() {
        let (_, bytes) = sealed("attic");
        let disks = [("sda", vec![]), ("sdb", vec![]), ("sdc", vec![])];
        let (_dir, roots) = machine(&disks);
        // sda answers when it is let, sdb has nothing, sdc has the addition from a moment on.
        let (let_it, may_answer) = std::sync::mpsc::channel::<()>();
        let may_answer = Arc::new(Mutex::new(may_answer));
        let (asked, has) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let read = {
            let (asked, has, bytes) = (asked.clone(), has.clone(), bytes.clone());
            move |disk: &Path| match disk.file_name().and_then(|name| name.to_str()) {
                Some("sda") => {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let _ = may_answer.lock().unwrap().recv();
                    Err(io::Error::other("I/O error"))
                }
                Some("sdc") if has.load(Ordering::SeqCst) => Ok(Some(bytes.clone())),
                _ => Ok(None),
            }
        };
        let mut looker = Looker { round: Duration::from_millis(100), ..Looker::new(roots.clone()) };
        let text = looker.look_with(read.clone()).await.unwrap_err().to_string();
        assert!(text.contains("sda: no answer for 0 s: is it broken?"), "{text}");
        has.store(true, Ordering::SeqCst);
        // A round is short here; a slow machine may need several.
        let found = loop {
            if let Ok(found) = looker.look_with(read.clone()).await {
                break found;
            }
        };
        assert_eq!(found.0, roots.dev.join("sdc"));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        has.store(false, Ordering::SeqCst);
        let_it.send(()).unwrap();
        loop {
            let text = looker.look_with(read.clone()).await.unwrap_err().to_string();
            if text.contains("sda: I/O error") {
                break;
            }
        }
    }

    #[tokio::test]
    async fn the_addition_is_found_on_a_stick_and_on_a_disc_beside_other_disks() {
        let (config, bytes) = sealed("attic");
        let disc = iso::image(&Contents { boot_file: b"MZ kernel", addition: Some(&bytes) }).unwrap();
        for medium in [stick(&bytes), disc] {
            let (_dir, roots) = machine(&[("nvme0n1", vec![0; 4096]), ("sda", medium), ("sdb", vec![])]);
            let (disk, addition) = look(&roots).await.unwrap();
            assert_eq!(disk, roots.dev.join("sda"));
            assert_eq!(addition.boot_config(), config);
        }
    }

    #[tokio::test]
    async fn without_one_the_disks_are_named() {
        let bare = usb::image(&Contents { boot_file: b"MZ", addition: None }).unwrap().bytes;
        let (_dir, roots) =
            machine(&[("loop0", stick(&sealed("attic").1)), ("sda", bare), ("vda", vec![1; 700])]);
        let text = look(&roots).await.unwrap_err().to_string();
        assert!(text.starts_with("no disk has a farm's addition"), "{text}");
        assert!(text.contains("sda: none"), "{text}");
        assert!(text.contains("vda: none") && !text.contains("loop0"), "{text}");
        let (_dir, none) = machine(&[]);
        assert!(look(&none).await.unwrap_err().to_string().ends_with("(there is no disk)"));
    }

    #[test]
    fn what_can_be_taken_out_is_looked_at_first_however_many_disks_there_are() {
        let names: Vec<String> = (0..DISKS + 6).map(|n| format!("sd{n:03}")).collect();
        let disks: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (&**name, vec![])).collect();
        let (_dir, roots) = machine(&disks);
        let last = roots.dev.join(&names[DISKS + 5]);
        assert!(!super::disks(&roots).contains(&last));
        fs::write(roots.sys.join(&names[DISKS + 5]).join("removable"), "1\n").unwrap();
        fs::write(roots.sys.join(&names[0]).join("removable"), "0\n").unwrap();
        // One more by USB, as the kernel shows it.
        let by_usb = roots.sys.parent().unwrap().join("devices/usb1/1-1/sdz");
        fs::create_dir_all(&by_usb).unwrap();
        std::os::unix::fs::symlink(&by_usb, roots.sys.join("sdz")).unwrap();
        let disks = super::disks(&roots);
        assert_eq!(disks[..3], [last, roots.dev.join("sdz"), roots.dev.join("sd000")]);
        assert_eq!(disks.len(), DISKS);
    }

    #[tokio::test]
    async fn an_altered_addition_is_refused_and_two_that_differ_are_too() {
        let (_, bytes) = sealed("attic");
        let mut altered = bytes.clone();
        let last = altered.len() - 1;
        altered[last] ^= 1;
        let (_dir, roots) = machine(&[("sda", stick(&altered))]);
        let error = look(&roots).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the farm's addition on {} is refused", roots.dev.join("sda").display())
        );
        assert!(crate::ledger::chain_of(&error).contains("was altered after its owner"));

        // What was altered keeps nothing good away.
        let (_dir, both) = machine(&[("sda", stick(&altered)), ("sdb", stick(&bytes))]);
        assert_eq!(look(&both).await.unwrap().0, both.dev.join("sdb"));
        let (_dir, same) = machine(&[("sda", stick(&bytes)), ("sdb", stick(&bytes))]);
        assert!(look(&same).await.is_ok());
        let (_dir, two) = machine(&[("sda", stick(&bytes)), ("sdb", stick(&sealed("cellar").1))]);
        let text = look(&two).await.unwrap_err().to_string();
        assert!(text.contains("are not the same: take out the medium"), "{text}");
    }

    #[test]
    fn a_hostile_disk_is_read_in_bounded_time_and_never_believed() {
        let (_, bytes) = sealed("attic");
        let good = stick(&bytes);
        // Each byte of the table and of the file system's first sectors, turned over.
        let spots = (512..512 + 96).chain(1024..1024 + 56).chain((1 << 20)..(1 << 20) + 100);
        for at in spots {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let mut disk = io::Cursor::new(bad);
            if let Ok(Some(found)) = addition(&mut disk) {
                assert!(found.len() <= limits::ADDITION_BYTES + 1);
                assert!(
                    found == bytes || Validated::open(&found, &Expectation::default()).is_err(),
                    "byte {at}"
                );
            }
        }
    }
}
