//! The three keys of Secure Boot in a folder: PK, KEK and db, each with its certificate.
//!
//! | key | signs | where it lives | what its loss means |
//! | --- | --- | --- | --- |
//! | PK | another PK, other KEKs | offline, two copies; needed a few times in a life | machines stay as they are; another PK needs a visit to each firmware menu |
//! | KEK | additions to db and dbx | offline, or with whoever answers for revocation | PK signs another KEK |
//! | db | boot files | where releases are made, nowhere else | KEK signs another db key, which machines must get before the next release |
//!
//! A key that others have seen: db: the KEK's owner signs a new db key in (append), releases move to it, then a dbx
//! with the old certificate follows; every old boot file is dead from then on. KEK: PK replaces it. PK: replaced by a
//! new one that the old one signs. Rotation goes the same way, without dbx. One bad release needs no new key: its hash
//! goes into dbx. [`efi_variable::authenticated`] makes all of these files; each needs a later time than the one before.
//!
//! Own keys only in db means: option ROMs that only Microsoft signed don't run any more, which may take screen or
//! network boot from a machine. [`Enrolment::new`] takes further certificates for that.
//!
//! Must never overwrite a key, and never use one that others may read.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use zeroize::Zeroizing;

use crate::efi_variable::{self, Entries, Variable, VariableError, Write};
use crate::rsa::{Bits, RsaError, RsaKey};
use crate::x509::{Cert, CertificateError};

/// Where [`create`] puts what firmware takes, in the folder of the keys.
pub const ENROLMENT: &str = "enrol";
/// A key file of 4096 bits has 2.4 kB.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Pk,
    Kek,
    Db,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Pk, Self::Kek, Self::Db];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pk => "PK",
            Self::Kek => "KEK",
            Self::Db => "db",
        }
    }
}

/// A key with its certificate.
#[derive(Debug)]
pub struct Signer {
    key: RsaKey,
    cert: Cert,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{path} exists: keys are never overwritten; name a new folder, or move the old one away")]
    Exists { path: PathBuf },
    #[error("can't write the keys into {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("can't read {path}: is it a folder made by 'croft media keys'?")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path} may be read by others (mode {mode:03o}): take the rights away with 'chmod 600', and think about who had them"
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("{path} has {len} bytes, which is no key and no certificate")]
    Size { path: PathBuf, len: u64 },
    #[error("{path} holds no usable key")]
    Key { path: PathBuf, source: RsaError },
    #[error("{path} holds no usable certificate")]
    Certificate { path: PathBuf, source: CertificateError },
    #[error(
        "the key and the certificate of {role} in {path} don't belong together: take both from the same backup"
    )]
    Mismatch { role: &'static str, path: PathBuf },
    #[error("a key could not be made")]
    Generate(#[from] RsaError),
    #[error("a certificate could not be made")]
    MakeCertificate(#[from] CertificateError),
    #[error("the enrolment can't be made")]
    Enrolment(#[from] VariableError),
}

impl Signer {
    /// # Errors
    /// [`KeyError::Mismatch`].
    pub fn new(key: RsaKey, cert: Cert) -> Result<Self, KeyError> {
        if key.public() == cert.public_key() {
            return Ok(Self { key, cert });
        }
        Err(KeyError::Mismatch { role: "this key", path: PathBuf::from(cert.subject()) })
    }

    /// Reads one key of a folder; a machine that makes releases has only db's.
    ///
    /// # Errors
    /// [`KeyError`] names the file.
    pub fn load(folder: &Path, role: Role) -> Result<Self, KeyError> {
        let path = folder.join(format!("{}.key", role.name()));
        let der = Zeroizing::new(read(&path, true)?);
        let key = RsaKey::from_pkcs8(&der).map_err(|source| KeyError::Key { path, source })?;
        let cert = load_certificate(folder, role)?;
        if key.public() != cert.public_key() {
            return Err(KeyError::Mismatch { role: role.name(), path: folder.to_owned() });
        }
        Ok(Self { key, cert })
    }

    #[must_use]
    pub fn key(&self) -> &RsaKey {
        &self.key
    }

    #[must_use]
    pub fn cert(&self) -> &Cert {
        &self.cert
    }
}

/// Reads a certificate of a folder, which needs no key.
///
/// # Errors
/// [`KeyError`] names the file.
pub fn load_certificate(folder: &Path, role: Role) -> Result<Cert, KeyError> {
    let path = folder.join(format!("{}.cer", role.name()));
    Cert::from_der(&read(&path, false)?).map_err(|source| KeyError::Certificate { path, source })
}

/// Makes a folder with three new keys, their certificates, and the [`Enrolment`] beside them. It appears whole or not at
/// all.
///
/// # Errors
/// [`KeyError`]; whatever was there stays.
pub fn create(folder: &Path, organisation: &str, bits: Bits, created_s: u64) -> Result<(), KeyError> {
    let exists = || KeyError::Exists { path: folder.to_owned() };
    // Before a second of computing; the rename below decides.
    if folder.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let signer = |role: Role| {
        let key = RsaKey::generate(bits)?;
        let cert = Cert::self_signed(&key, &format!("Croft {}", role.name()), organisation, created_s)?;
        Ok::<_, KeyError>(Signer { key, cert })
    };
    let signers = [signer(Role::Pk)?, signer(Role::Kek)?, signer(Role::Db)?];
    let [pk, kek, db] = &signers;
    let enrolment = Enrolment::new(pk, kek, &db.cert, &[])?;
    let failed = |source| KeyError::Write { path: folder.to_owned(), source };
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    // Made for the owner only; removed when anything fails.
    let private = fs::Permissions::from_mode(0o700);
    let aside =
        tempfile::Builder::new().prefix(".keys-").permissions(private).tempdir_in(parent).map_err(failed)?;
    for (role, signer) in Role::ALL.into_iter().zip(&signers) {
        let file = |end: &str| aside.path().join(format!("{}.{end}", role.name()));
        write(&file("key"), signer.key.to_pkcs8(), 0o600).map_err(failed)?;
        write(&file("cer"), signer.cert.der(), 0o644).map_err(failed)?;
    }
    enrolment.write(&aside.path().join(ENROLMENT))?;
    sync_folder(aside.path()).map_err(failed)?;
    let done = rustix::fs::renameat_with(CWD, aside.path(), CWD, folder, RenameFlags::NOREPLACE);
    match done {
        Ok(()) => {
            // What the guard would remove has another name now.
            let _ = aside.keep();
            sync_folder(parent).map_err(failed)
        }
        Err(rustix::io::Errno::EXIST) => Err(exists()),
        Err(error) => Err(failed(error.into())),
    }
}

/// What firmware in setup mode takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// File name and content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Enrolment {
    /// The files for setup mode. `further` certificates go into db beside ours: other loaders, option ROMs. Equal keys
    /// give equal files: each carries the time at which its signer was made.
    ///
    /// # Errors
    /// [`VariableError`].
    pub fn new(pk: &Signer, kek: &Signer, db: &Cert, further: &[Cert]) -> Result<Self, VariableError> {
        let mut allowed = vec![db.clone()];
        allowed.extend_from_slice(further);
        let only = std::slice::from_ref;
        let write = |variable, certs: &[Cert], signer: &Signer| {
            efi_variable::authenticated(
                variable,
                Entries::Certificates(certs),
                signer,
                signer.cert.created_s(),
                Write::Replace,
            )
        };
        let mut files = vec![
            ("PK.auth".to_owned(), write(Variable::Pk, only(&pk.cert), pk)?),
            ("KEK.auth".to_owned(), write(Variable::Kek, only(&kek.cert), pk)?),
            ("db.auth".to_owned(), write(Variable::Db, &allowed, kek)?),
        ];
        // Firmware menus take certificates, some tools lists.
        for (name, cert) in [("PK", &pk.cert), ("KEK", &kek.cert), ("db", db)] {
            files.push((format!("{name}.cer"), cert.der().to_vec()));
            let of_db = name == "db";
            let list = if of_db { &allowed[..] } else { only(cert) };
            files.push((format!("{name}.esl"), efi_variable::signature_list(Entries::Certificates(list))));
        }
        Ok(Self { files })
    }

    /// Writes the files into a folder, replacing older ones: all of it is public and can be made again.
    ///
    /// # Errors
    /// With the file's path.
    pub fn write(&self, folder: &Path) -> Result<(), KeyError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| KeyError::Write { path, source }
        };
        fs::create_dir_all(folder).map_err(failed(folder))?;
        for (name, content) in &self.files {
            let path = folder.join(name);
            fs::write(&path, content).map_err(failed(&path))?;
        }
        Ok(())
    }
}

fn read(path: &Path, secret: bool) -> Result<Vec<u8>, KeyError> {
    let failed = |source| KeyError::Read { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    if secret && mode & 0o077 != 0 {
        return Err(KeyError::Open { path: path.to_owned(), mode });
    }
    if metadata.len() > FILE_BYTES_MAX || !metadata.is_file() {
        return Err(KeyError::Size { path: path.to_owned(), len: metadata.len() });
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A key that only tests trust.
    pub(crate) fn rsa(name: &str) -> RsaKey {
        let der: &[u8] = match name {
            "PK" => include_bytes!("../tests/keys/PK.key"),
            "KEK" => include_bytes!("../tests/keys/KEK.key"),
            _ => include_bytes!("../tests/keys/db.key"),
        };
        RsaKey::from_pkcs8(der).unwrap()
    }

    pub(crate) fn signer(name: &str) -> Signer {
        let key = rsa(name);
        let cert = Cert::self_signed(&key, &format!("Croft {name}"), "Test Farm", 1_700_000_000).unwrap();
        Signer::new(key, cert).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn new_keys_are_for_their_owner_only_and_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("keys");
        create(&folder, "Test Farm", Bits::Rsa2048, 1_700_000_000).unwrap();
        assert_eq!(mode(&folder), 0o700);
        let before = fs::read(folder.join("PK.key")).unwrap();
        for role in Role::ALL {
            assert_eq!(mode(&folder.join(format!("{}.key", role.name()))), 0o600);
            let signer = Signer::load(&folder, role).unwrap();
            assert_eq!(signer.cert().subject(), format!("CN=Croft {},O=Test Farm", role.name()));
        }
        let error = create(&folder, "Test Farm", Bits::Rsa2048, 0).unwrap_err().to_string();
        assert!(
            error.ends_with("keys are never overwritten; name a new folder, or move the old one away"),
            "{error}"
        );
        assert_eq!(fs::read(folder.join("PK.key")).unwrap(), before);
        assert_eq!(fs::read_dir(folder.join(ENROLMENT)).unwrap().count(), 9, "it came with the keys");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_has_another_certificate_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| write(&dir.path().join(name), content, 0o600).unwrap();
        put("PK.key", testing::rsa("PK").to_pkcs8());
        put("PK.cer", testing::signer("db").cert().der());
        let error = Signer::load(dir.path(), Role::Pk).unwrap_err().to_string();
        assert!(error.starts_with("the key and the certificate of PK in "), "{error}");
        let path = dir.path().join("PK.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Signer::load(dir.path(), Role::Pk).unwrap_err().to_string();
        assert!(error.contains("may be read by others (mode 640)"), "{error}");
        assert!(matches!(Signer::load(dir.path(), Role::Db), Err(KeyError::Read { .. })));
        put("db.key", b"nonsense");
        assert!(matches!(Signer::load(dir.path(), Role::Db), Err(KeyError::Key { .. })));
    }

    #[test]
    fn enrolment_is_a_function_of_the_keys_and_each_file_is_signed_by_who_may() {
        let (pk, kek, db) = (testing::signer("PK"), testing::signer("KEK"), testing::signer("db"));
        let further = [pk.cert().clone()];
        let make = || Enrolment::new(&pk, &kek, db.cert(), &further).unwrap();
        let enrolment = make();
        assert_eq!(enrolment, make());
        let file = |name: &str| &enrolment.files.iter().find(|(file, _)| file == name).unwrap().1;
        let by = |signer: &Signer| [signer.cert().clone()];
        let check =
            |variable, name, signer| efi_variable::verify(variable, file(name), &by(signer), Write::Replace);
        check(Variable::Pk, "PK.auth", &pk).unwrap();
        check(Variable::Kek, "KEK.auth", &pk).unwrap();
        assert_eq!(check(Variable::Db, "db.auth", &kek).unwrap(), file("db.esl"));
        assert_eq!(file("db.cer"), db.cert().der());
        let dir = tempfile::tempdir().unwrap();
        enrolment.write(&dir.path().join("enrol")).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("enrol")).unwrap().count(), 9);
    }
}
