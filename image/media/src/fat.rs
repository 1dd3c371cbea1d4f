//! Makes a FAT32 file system in memory: every file in one piece, 8.3 names, one moment for all dates.
//!
//! Source: Microsoft, "FAT32 File System Specification", 1.03. It only ever makes new file systems; the `fatfs` crate,
//! which reads them in tests, gives `.` and `..` long names when it writes, and fsck.vfat takes that for damage.
//!
//! ```text
//!   0 boot sector   1 FSInfo   6, 7 copies   32 first table   second table   clusters: folders, then files
//! ```

const SECTOR: usize = 512;
const RESERVED_SECTORS: usize = 32;
const TABLES: usize = 2;
/// FAT32 has at least 65,525 clusters, or it is taken for FAT16. Some more, since drivers draw the line differently.
pub(crate) const CLUSTERS_MIN: usize = 66_000;
/// The root folder; the two before it don't exist.
const ROOT: u32 = 2;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
const ENTRY_BYTES: usize = 32;
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_FOLDER: u8 = 0x10;
const ATTRIBUTE_FILE: u8 = 0x20;
/// 1980-01-01, the first day that FAT knows.
const DATE: u16 = 0x0021;

/// What a volume is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Volume {
    pub(crate) bytes: usize,
    pub(crate) cluster_bytes: usize,
    pub(crate) id: [u8; 4],
    /// Filled up with spaces.
    pub(crate) label: [u8; 11],
    /// Sectors of the disk before it.
    pub(crate) hidden_sectors: u32,
}

/// A file or a folder.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    Folder(&'static str, Vec<Node<'a>>),
    File(&'static str, &'a [u8]),
}

/// A file system that can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FatError {
    #[error("a FAT32 volume of {bytes} bytes with clusters of {cluster_bytes} can't be")]
    Geometry { bytes: usize, cluster_bytes: usize },
    #[error("'{name}' is no 8.3 name in capitals")]
    Name { name: &'static str },
    #[error("folder '{name}' has more entries than one cluster holds")]
    FolderFull { name: &'static str },
    #[error("the files need {needs} clusters, and the volume has {has}")]
    Full { needs: usize, has: usize },
}

/// Sectors in one table, and clusters in the volume.
#[derive(Clone, Copy)]
struct Geometry {
    table_sectors: usize,
    clusters: usize,
}

struct Builder<'a> {
    volume: Volume,
    geometry: Geometry,
    /// Next free cluster.
    next: u32,
    /// First cluster and content.
    pieces: Vec<(u32, Piece<'a>)>,
}

enum Piece<'a> {
    Folder(Vec<u8>),
    File(&'a [u8]),
}

impl Volume {
    fn geometry(&self) -> Result<Geometry, FatError> {
        let no = FatError::Geometry { bytes: self.bytes, cluster_bytes: self.cluster_bytes };
        let sectors = self.bytes / SECTOR;
        let per_cluster = self.cluster_bytes / SECTOR;
        let fits = self.bytes.is_multiple_of(SECTOR)
            && u32::try_from(sectors).is_ok()
            && self.cluster_bytes.is_multiple_of(SECTOR)
            && [1, 2, 4, 8, 16, 32, 64].contains(&per_cluster)
            && sectors > RESERVED_SECTORS;
        if !fits {
            return Err(no);
        }
        // The specification's own formula, which may waste a sector or two.
        let table_sectors = (sectors - RESERVED_SECTORS).div_ceil(128 * per_cluster + TABLES / 2);
        let clusters = sectors.saturating_sub(RESERVED_SECTORS + TABLES * table_sectors) / per_cluster;
        if clusters < CLUSTERS_MIN { Err(no) } else { Ok(Geometry { table_sectors, clusters }) }
    }
}

/// The volume's bytes.
///
/// # Errors
/// [`FatError`].
pub(crate) fn build(volume: Volume, root: &[Node<'_>]) -> Result<Vec<u8>, FatError> {
    let geometry = volume.geometry()?;
    let mut builder = Builder { volume, geometry, next: ROOT, pieces: Vec::new() };
    builder.folder("/", root, None)?;
    let used = (builder.next - ROOT) as usize;
    if used > geometry.clusters {
        return Err(FatError::Full { needs: used, has: geometry.clusters });
    }
    Ok(builder.write())
}

impl<'a> Builder<'a> {
    /// Takes clusters for a folder and all that is in it. `parent` is `None` for the root.
    fn folder(
        &mut self,
        name: &'static str,
        nodes: &[Node<'a>],
        parent: Option<u32>,
    ) -> Result<u32, FatError> {
        let here = self.take(1);
        let mut entries = match parent {
            None => entry(&self.volume.label, ATTRIBUTE_LABEL, 0, 0),
            Some(parent) => {
                // The root's number is not written there.
                let parent = if parent == ROOT { 0 } else { parent };
                let mut both = entry(b".          ", ATTRIBUTE_FOLDER, here, 0);
                both.extend(entry(b"..         ", ATTRIBUTE_FOLDER, parent, 0));
                both
            }
        };
        for node in nodes {
            entries.extend(match node {
                Node::Folder(name, inside) => {
                    let cluster = self.folder(name, inside, Some(here))?;
                    entry(&short_name(name)?, ATTRIBUTE_FOLDER, cluster, 0)
                }
                Node::File(name, content) => {
                    let clusters = content.len().div_ceil(self.volume.cluster_bytes);
                    // An empty file has no cluster.
                    let first = if clusters == 0 { 0 } else { self.take(clusters) };
                    self.pieces.push((first, Piece::File(content)));
                    entry(&short_name(name)?, ATTRIBUTE_FILE, first, content.len() as u32)
                }
            });
        }
        // An entry of zeros ends a folder that doesn't fill its cluster.
        if entries.len() > self.volume.cluster_bytes {
            return Err(FatError::FolderFull { name });
        }
        self.pieces.push((here, Piece::Folder(entries)));
        Ok(here)
    }

    fn take(&mut self, clusters: usize) -> u32 {
        let first = self.next;
        self.next = self.next.saturating_add(u32::try_from(clusters).unwrap_or(u32::MAX));
        first
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.volume.bytes];
        let mut put = |at: usize, content: &[u8]| bytes[at..at + content.len()].copy_from_slice(content);
        let (boot, info) = (self.boot_sector(), self.info_sector());
        for copy in [0, 6] {
            put(copy * SECTOR, &boot);
            put((copy + 1) * SECTOR, &info);
        }
        let table = self.table();
        for copy in 0..TABLES {
            put((RESERVED_SECTORS + copy * self.geometry.table_sectors) * SECTOR, &table);
        }
        let data = (RESERVED_SECTORS + TABLES * self.geometry.table_sectors) * SECTOR;
        for (first, piece) in &self.pieces {
            let content = match piece {
                Piece::Folder(entries) => entries,
                Piece::File(content) => *content,
            };
            if !content.is_empty() {
                put(data + (first - ROOT) as usize * self.volume.cluster_bytes, content);
            }
        }
        bytes
    }

    /// Each piece is a chain of neighbours.
    fn table(&self) -> Vec<u8> {
        let mut entries = vec![0u32; self.next as usize];
        entries[0] = 0x0fff_fff8;
        entries[1] = END_OF_CHAIN;
        for (first, piece) in &self.pieces {
            let clusters = match piece {
                Piece::Folder(_) => 1,
                Piece::File(content) => content.len().div_ceil(self.volume.cluster_bytes) as u32,
            };
            for cluster in *first..*first + clusters {
                let is_last = cluster + 1 == first + clusters;
                entries[cluster as usize] = if is_last { END_OF_CHAIN } else { cluster + 1 };
            }
        }
        entries.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn boot_sector(&self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0xeb, 0x58, 0x90]);
        put(3, b"CROFT   ");
        put(11, &(SECTOR as u16).to_le_bytes());
        put(13, &[(self.volume.cluster_bytes / SECTOR) as u8]);
        put(14, &(RESERVED_SECTORS as u16).to_le_bytes());
        put(16, &[TABLES as u8]);
        // A fixed disk; a geometry that nobody uses.
        put(21, &[0xf8]);
        put(24, &63u16.to_le_bytes());
        put(26, &255u16.to_le_bytes());
        put(28, &self.volume.hidden_sectors.to_le_bytes());
        put(32, &((self.volume.bytes / SECTOR) as u32).to_le_bytes());
        put(36, &(self.geometry.table_sectors as u32).to_le_bytes());
        put(44, &ROOT.to_le_bytes());
        put(48, &1u16.to_le_bytes());
        put(50, &6u16.to_le_bytes());
        put(64, &[0x80, 0, 0x29]);
        put(67, &self.volume.id);
        put(71, &self.volume.label);
        put(82, b"FAT32   ");
        put(510, &[0x55, 0xaa]);
        sector
    }

    fn info_sector(&self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let free = self.geometry.clusters as u32 - (self.next - ROOT);
        sector[..4].copy_from_slice(b"RRaA");
        sector[484..488].copy_from_slice(b"rrAa");
        sector[488..492].copy_from_slice(&free.to_le_bytes());
        sector[492..496].copy_from_slice(&self.next.to_le_bytes());
        sector[508..512].copy_from_slice(&[0, 0, 0x55, 0xaa]);
        sector
    }
}

fn entry(name: &[u8; 11], attributes: u8, cluster: u32, size: u32) -> Vec<u8> {
    let mut entry = vec![0; ENTRY_BYTES];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    // Created, accessed, written.
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE.to_le_bytes());
    }
    entry[20..22].copy_from_slice(&((cluster >> 16) as u16).to_le_bytes());
    entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
    entry[28..32].copy_from_slice(&size.to_le_bytes());
    entry
}

/// `BOOTX64 EFI` for `BOOTX64.EFI`.
fn short_name(name: &'static str) -> Result<[u8; 11], FatError> {
    let (stem, end) = name.split_once('.').unwrap_or((name, ""));
    let fits = |part: &str, max| {
        part.len() <= max && part.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    if stem.is_empty() || !fits(stem, 8) || !fits(end, 3) {
        return Err(FatError::Name { name });
    }
    let mut short = [b' '; 11];
    short[..stem.len()].copy_from_slice(stem.as_bytes());
    short[8..8 + end.len()].copy_from_slice(end.as_bytes());
    Ok(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: Volume = Volume {
        bytes: 34 << 20,
        cluster_bytes: 512,
        id: [1, 2, 3, 4],
        label: *b"CROFT      ",
        hidden_sectors: 0,
    };

    #[test]
    fn what_can_not_be_is_refused_by_name() {
        let many = |count| (0..count).map(|_| Node::File("A", b"")).collect::<Vec<_>>();
        build(VOLUME, &many(15)).unwrap();
        let message = |volume, nodes: &[Node<'_>]| build(volume, nodes).unwrap_err().to_string();
        assert_eq!(message(VOLUME, &many(16)), "folder '/' has more entries than one cluster holds");
        for name in ["boot.efi", "TOOLONGNAME.EFI", "", ".EFI", "A.LONG", "A.B.C"] {
            assert_eq!(
                message(VOLUME, &[Node::File(name, b"")]),
                format!("'{name}' is no 8.3 name in capitals")
            );
        }
        let large = vec![0; 34 << 20];
        assert!(message(VOLUME, &[Node::File("A", &large)]).starts_with("the files need 69633 clusters"));
        for (bytes, cluster_bytes) in
            [(34 << 20, 1024), (1 << 20, 512), (34 << 20, 513), ((34 << 20) + 1, 512)]
        {
            assert!(message(Volume { bytes, cluster_bytes, ..VOLUME }, &[]).contains("can't be"), "{bytes}");
        }
    }

    #[test]
    fn another_implementation_counts_the_same_clusters() {
        let content = vec![7; 100_000];
        let bytes =
            build(VOLUME, &[Node::Folder("D", vec![Node::File("F", &content), Node::File("E", b"")])])
                .unwrap();
        let fs = fatfs::FileSystem::new(std::io::Cursor::new(bytes), fatfs::FsOptions::new()).unwrap();
        let stats = fs.stats().unwrap();
        // Root, D, and F in 196 clusters.
        assert_eq!(stats.total_clusters() - stats.free_clusters(), 198);
        assert_eq!((fs.fat_type(), fs.volume_id()), (fatfs::FatType::Fat32, 0x0403_0201));
        assert_eq!(fs.root_dir().open_dir("D").unwrap().iter().count(), 4);
    }
}
