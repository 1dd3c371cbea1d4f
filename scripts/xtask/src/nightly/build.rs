//! How one of the two builds is made, and what is measured on it.
//!
//! Must never look outside the source folder and the cache that it is given, but for `--reuse-kernels`.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use croft_image_builder::Vmm;
use croft_image_builder::build::{ALIOTH, RegistryProgram, VIRTIOFSD, build_ours};
use croft_image_builder::vmm::CLOUD_HYPERVISOR_SHA256;

use super::compare::Artifact;
use super::sbom::Component;
use super::{debian, hardening, sha256};
use crate::image::{MEDIA, MICROCODE_SUMS};
use crate::repo;

/// What one build made.
#[derive(Debug, Clone, Default)]
pub(super) struct Built {
    pub(super) artifacts: Vec<Artifact>,
    /// What is in it beside our crates and theirs.
    pub(super) components: Vec<Component>,
}

pub(super) trait Builder {
    /// Whether everything is here that is needed after hours of building.
    fn ready(&self) -> Result<()> {
        Ok(())
    }
    /// Builds the tree in `source` as a release of this version; everything that it keeps goes to `cache`.
    fn build(&self, source: &Path, cache: &Path, release: &str) -> Result<Built>;
    /// Name and text of each table and paper about what was built.
    fn measure(&self, source: &Path, cache: &Path, built: &Built) -> Result<Vec<(String, String)>>;
}

/// Init and guest alone: enough to see paths and times that get into programs.
pub(super) struct Quick;

impl Builder for Quick {
    fn build(&self, source: &Path, cache: &Path, _: &str) -> Result<Built> {
        let programs = build_ours(source, cache, &["croft-init", "croft-guest"])?;
        let artifacts = programs.into_iter().map(|(name, path)| Artifact { name, path }).collect();
        Ok(Built { artifacts, components: Vec::new() })
    }

    fn measure(&self, _: &Path, _: &Path, built: &Built) -> Result<Vec<(String, String)>> {
        let mut sizes = String::new();
        for artifact in &built.artifacts {
            let bytes = artifact.path.metadata().context("can't measure a program")?.len();
            let _ = writeln!(sizes, "{:20} {bytes:>10} bytes", artifact.name);
        }
        Ok(vec![("sizes.txt".to_owned(), sizes)])
    }
}

/// Kernels, image, boot file, media; hardening score and bench.
pub(super) struct Full {
    pub(super) reuse_kernels: bool,
    /// Of the caller.
    pub(super) cache: PathBuf,
}

/// What the image folder holds, and is compared and kept.
const FILES: [&str; 4] = ["croft.efi", "bzImage", "initramfs.zst", "sizes.json"];

impl Full {
    /// `cargo xtask` of the source folder, with places of its own.
    fn xtask(source: &Path, cache: &Path) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(source)
            .env("CROFT_CACHE", cache)
            .env("CARGO_TARGET_DIR", cache.join("target"))
            .env_remove("CARGO_MANIFEST_DIR")
            .args(["run", "--quiet", "--locked", "-p", "croft-xtask", "--"]);
        command
    }

    fn image_folder(source: &Path, cache: &Path) -> Result<PathBuf> {
        let text = repo::capture(Self::xtask(source, cache).args(["image", "--print-path"]))?;
        Ok(text.lines().last().context("xtask names no image folder")?.into())
    }

    /// The kernels with their objects, as hard links: the same key means the same inputs.
    fn lend_kernels(&self, cache: &Path) -> Result<()> {
        let (from, to) = (self.cache.join("kernel"), cache.join("kernel"));
        fs::create_dir_all(&to).with_context(|| format!("can't create {}", to.display()))?;
        let Ok(entries) = fs::read_dir(&from) else { return Ok(()) };
        for entry in entries {
            let path = entry.with_context(|| format!("can't read {}", from.display()))?.path();
            // Whatever is worked on would be worked on in both; a shared lock would make the builds wait for each other.
            if !["work", "lock"].iter().any(|name| path.ends_with(name)) {
                repo::capture(Command::new("cp").args(["-a", "--link"]).arg(&path).arg(&to))?;
            }
        }
        Ok(())
    }
}

impl Builder for Full {
    fn ready(&self) -> Result<()> {
        hardening::version()?;
        // Which of the two monitors it will be changes none of the distribution's files.
        debian::packages(&debian::collected(&repo::root(), Vmm::CloudHypervisor)?)?;
        debian::packages(&debian::linked()?)?;
        Ok(())
    }

    fn build(&self, source: &Path, cache: &Path, release: &str) -> Result<Built> {
        if self.reuse_kernels {
            self.lend_kernels(cache)?;
        }
        let image = ["image", "--boot-file", "--media", "--release", release];
        repo::run(Self::xtask(source, cache).args(image))?;
        let folder = Self::image_folder(source, cache)?;
        let artifact = |name: &str| Artifact { name: name.to_owned(), path: folder.join(name) };
        let media = MEDIA.iter().map(|(_, name)| name);
        let mut artifacts: Vec<Artifact> = FILES.iter().chain(media).map(|name| artifact(name)).collect();
        for flavor in ["node", "guest"] {
            let kernel = kernel_folder(source, cache, flavor)?;
            artifacts.push(Artifact { name: format!("{flavor}.config"), path: kernel.join("config") });
            artifacts
                .push(Artifact { name: format!("{flavor}.System.map"), path: kernel.join("System.map") });
        }
        let components = components(source, &folder, &kernel_folder(source, cache, "node")?)?;
        Ok(Built { artifacts, components })
    }

    fn measure(&self, source: &Path, cache: &Path, _: &Built) -> Result<Vec<(String, String)>> {
        let config = kernel_folder(source, cache, "node")?.join("config");
        let (json, score) = hardening::run(&config)?;
        score.judge()?;
        eprintln!("nightly: hardening: {score}");
        let bench = repo::capture(Self::xtask(source, cache).args(["bench", "boot"]))?;
        let boot_file = Self::image_folder(source, cache)?.join("croft.efi");
        let mut media = Self::xtask(source, cache);
        let media = repo::capture(media.env("CROFT_BOOT_FILE", boot_file).args(["bench", "media"]))?;
        let mut tables = vec![
            ("hardening.json".to_owned(), json),
            ("hardening.txt".to_owned(), format!("{score}\n  {}\n", score.failed.join("\n  "))),
            ("bench.txt".to_owned(), bench),
            ("bench-media.txt".to_owned(), media),
        ];
        let folder = source.join("target/bench");
        for entry in fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let name = format!("bench-{}", path.file_name().unwrap_or_default().to_string_lossy());
                let text =
                    fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
                tables.push((name, text));
            }
        }
        Ok(tables)
    }
}

fn kernel_folder(source: &Path, cache: &Path, flavor: &str) -> Result<PathBuf> {
    let text = repo::capture(Full::xtask(source, cache).args(["kernel", "--print-path", flavor]))?;
    Ok(text.trim().into())
}

/// What the image holds beside our own programs: `inputs` of the image folder names what was built, the manifests what
/// the distribution gives, and `microcode` what is linked into the boot file.
fn components(source: &Path, image: &Path, kernel: &Path) -> Result<Vec<Component>> {
    let read = |name: &str| {
        let path = image.join(name);
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    };
    let config = kernel.join("config");
    let config = fs::read_to_string(&config).with_context(|| format!("can't read {}", config.display()))?;
    let linux = kernel_version(&config).context("the kernel's configuration names no version")?;
    let purl = format!("pkg:deb/debian/linux-source-6.12@{linux}");
    let mut components =
        vec![Component::other("operating-system", "linux", linux, Some(purl)).licensed("GPL-2.0-only")];
    let inputs = read("inputs")?;
    for (name, file) in inputs.lines().filter_map(|line| line.split_once('=')) {
        let registry = |program: RegistryProgram, licence: &str| {
            let purl = format!("pkg:cargo/{}@{}", program.name, program.version);
            Component::other("application", program.name, program.version, Some(purl)).licensed(licence)
        };
        let component = match name {
            "virtiofsd" => registry(VIRTIOFSD, "Apache-2.0 AND BSD-3-Clause"),
            "alioth" => registry(ALIOTH, "Apache-2.0"),
            "cloud-hypervisor" => {
                let sum = sha256(Path::new(file))?;
                let version = if sum == CLOUD_HYPERVISOR_SHA256 { "53.0" } else { "unknown" };
                Component::other("application", "cloud-hypervisor", version, None)
                    .licensed("Apache-2.0 AND BSD-3-Clause")
            }
            _ => continue,
        };
        components.push(component.hashed(&sha256(Path::new(file))?));
    }
    let vmm = croft_image_builder::image::open(image)?.sizes.vmm;
    let mut files = debian::collected(source, vmm)?;
    files.extend(debian::linked()?);
    components.extend(debian::packages(&files)?.iter().map(debian::Package::component));
    components.extend(debian::microcode(&read(MICROCODE_SUMS)?)?);
    Ok(components)
}

/// "6.12.95" from the head of a kernel configuration.
fn kernel_version(config: &str) -> Option<&str> {
    config.lines().take(5).find_map(|line| {
        // After the architecture as the build names it: x86 or x86_64.
        line.strip_prefix("# Linux/")?
            .strip_suffix(" Kernel Configuration")?
            .split_once(' ')
            .map(|(_, version)| version)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_version_is_read_from_its_configuration() {
        for architecture in ["x86", "x86_64"] {
            let config = format!(
                "#\n# Automatically generated file; DO NOT EDIT.\n# Linux/{architecture} 6.12.95 Kernel Configuration\n#\n"
            );
            assert_eq!(kernel_version(&config), Some("6.12.95"));
        }
        assert_eq!(kernel_version("CONFIG_A=y\n"), None);
    }

    /// An image folder with as much as the bill of materials reads, and its kernel's beside it.
    fn image(microcode: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("config", "# Linux/x86 6.12.95 Kernel Configuration\n");
        put("virtiofsd.program", "v");
        put("inputs", &format!("release=/x\nvirtiofsd={}\n", dir.path().join("virtiofsd.program").display()));
        put("microcode", microcode);
        let sizes = serde_json::json!({
            "vmm": "alioth", "parts": [], "total_bytes": 1, "budget_bytes": 2, "goal_bytes": 2
        });
        put("sizes.json", &sizes.to_string());
        for name in ["bzImage", "initramfs.zst", "key"] {
            put(name, "");
        }
        dir
    }

    #[test]
    fn the_bill_has_what_is_built_what_the_distribution_gives_and_what_the_boot_file_holds() {
        let dir = image("aabb  /nowhere/intel-ucode/06-cf-02\n");
        let components = components(&repo::root(), dir.path(), dir.path()).unwrap();
        let json = serde_json::to_value(&components).unwrap();
        let names: Vec<&str> = json.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        let expected = [
            "linux",
            "virtiofsd",
            "e2fsprogs",
            "libc6",
            "libc6-dev",
            "libseccomp-dev",
            "intel-ucode/06-cf-02",
        ];
        for name in expected {
            assert!(names.contains(&name), "{name} is missing: {names:?}");
        }
        let mut references: Vec<&str> =
            json.as_array().unwrap().iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
        references.sort_unstable();
        let all = references.len();
        references.dedup();
        assert_eq!(references.len(), all, "each is listed once");
    }

    #[test]
    fn an_image_without_its_list_of_microcode_has_no_bill() {
        let dir = image("");
        fs::remove_file(dir.path().join(MICROCODE_SUMS)).unwrap();
        let text = components(&repo::root(), dir.path(), dir.path()).unwrap_err().to_string();
        assert!(text.contains("can't read") && text.ends_with("/microcode"), "{text}");
    }
}
