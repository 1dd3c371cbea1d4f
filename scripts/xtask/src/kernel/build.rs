//! From a recipe to a kernel: configure, check, compile, file under its key.
//!
//! Must never leave a partial result where a whole one is looked for, and never let the caller's
//! environment (CFLAGS, ARCH, KCONFIG_*) change what comes out.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::available_parallelism;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::fragment::{Configuration, Missing, Value};
use super::progress::{Progress, duration};
use super::{FILES, Flavor, Kernel, Options, Recipe, boot_file, kernel_cache, source};
use crate::repo;

/// Programs that the build calls, with the package that has them.
const TOOLS: [(&str, &str); 13] = [
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("objcopy", "binutils"),
    ("strip", "binutils"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("cpio", "cpio"),
];

/// objtool, which checks and patches every object, is built against it.
const LIBELF_HEADER: (&str, &str) = ("/usr/include/gelf.h", "libelf-dev");

/// Where gcc keeps the headers for plugins, and the package that has them (`V` for the version): the node's kernel wipes
/// its stack and lays out its structures by plugins. Without them Kconfig drops the request, and says nothing of why.
const PLUGIN_HEADER: (&str, &str) = ("include/plugin-version.h", "gcc-V-plugin-dev");

/// Results of other fragments, sources and compilers that are kept for a change of mind.
const KEPT_RESULTS: usize = 8;

/// What `uname -v` says. The same everywhere, so that the same inputs give the same bytes.
const REPRODUCIBLE: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "croft"),
    ("KBUILD_BUILD_HOST", "croft"),
    ("KBUILD_BUILD_VERSION", "1"),
];

#[derive(Debug, Error)]
pub(super) enum ConfigureError {
    #[error("{} of {total} requested values are missing from the {flavor} kernel's configuration:\n{}", .missing.len(), list(.missing))]
    Missing { flavor: &'static str, total: usize, missing: Vec<Missing> },
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(|one| format!("  {one}")).collect::<Vec<_>>().join("\n")
}

/// Fails with one line that names every missing program and the packages to install.
pub(super) fn require_tools() -> Result<()> {
    let mut missing: Vec<_> = TOOLS.into_iter().filter(|(program, _)| !repo::on_path(program)).collect();
    if !Path::new(LIBELF_HEADER.0).exists() {
        missing.push(LIBELF_HEADER);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    bail!("the kernel build needs {}: apt-get install {}", names.join(", "), packages.join(" "))
}

/// Fails where gcc has no headers for plugins, with the package's name.
fn require_plugins() -> Result<()> {
    let answer = |argument: &str| -> Result<String> {
        Ok(repo::capture(Command::new("gcc").arg(argument).env("LC_ALL", "C"))?.trim().to_owned())
    };
    let dir = PathBuf::from(answer("-print-file-name=plugin")?);
    if dir.join(PLUGIN_HEADER.0).is_file() {
        return Ok(());
    }
    let version = answer("-dumpversion")?;
    let major = version.split('.').next().unwrap_or_default();
    let package = PLUGIN_HEADER.1.replace('V', major);
    bail!(
        "the node's kernel is built with plugins of gcc, whose headers are missing: apt-get install {package}"
    )
}

/// Configures in a place of its own and checks the result. Returns how many values were requested.
pub(super) fn configure_only(recipe: &Recipe) -> Result<usize> {
    let _lock = lock()?;
    require(recipe)?;
    let tree = source::unpack(&recipe.source)?;
    configure(recipe, &tree, &objects(recipe)?)?;
    Ok(recipe.requests.len())
}

/// The kernel of this recipe: from the cache, or built now.
pub(super) fn build(recipe: &Recipe, options: &Options) -> Result<Kernel> {
    if let Some(kernel) = recipe.result()? {
        return Ok(kernel);
    }
    let _lock = lock()?;
    // Whoever held the lock may have built the same.
    if let Some(kernel) = recipe.result()? {
        return Ok(kernel);
    }
    require(recipe)?;
    let tree = source::unpack(&recipe.source)?;
    let objects = objects(recipe)?;
    let whole = !objects.join(".config").exists();
    configure(recipe, &tree, &objects)?;
    compile(recipe, &tree, &objects, options.jobs, whole)?;
    let kernel = file_result(recipe, &objects)?;
    if recipe.flavor == Flavor::Node {
        boot_file::keep(recipe)?;
    }
    if !options.keep_objects {
        remove_dir(&objects)?;
    }
    forget_old_results(&kernel_cache()?, kernel.dir())?;
    Ok(kernel)
}

/// What this recipe needs beyond what every kernel does.
pub(super) fn require(recipe: &Recipe) -> Result<()> {
    if recipe
        .requests
        .iter()
        .any(|request| request.symbol == "CONFIG_GCC_PLUGINS" && request.value != Value::NotSet)
    {
        require_plugins()?;
    }
    Ok(())
}

/// One build at a time in one cache. Freed when the file is closed.
pub(super) fn lock() -> Result<File> {
    let cache = kernel_cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("can't create {}", cache.display()))?;
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("can't create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("kernel: waiting for another build to finish");
        file.lock().with_context(|| format!("can't lock {}", path.display()))?;
    }
    Ok(file)
}

/// Where the objects of this kernel come to lie: directly below the unpacked source, for there alone kbuild's commands
/// name the source as `..`; everywhere else they hold its absolute path, and objects that another cache made are made anew.
pub(super) fn objects(recipe: &Recipe) -> Result<PathBuf> {
    let tree = source::tree(&recipe.source)?;
    // An empty folder would pass for the source.
    ensure!(tree.is_dir(), "{} is not unpacked yet", tree.display());
    let dir = tree.join(format!("croft-{}", recipe.flavor.name()));
    fs::create_dir_all(&dir).with_context(|| format!("can't create {}", dir.display()))?;
    Ok(dir)
}

/// `make` in the source tree with nothing of the caller's environment but what finds programs.
pub(super) fn make(tree: &Path, objects: &Path) -> Command {
    let mut make = Command::new("make");
    make.env_clear()
        .envs(["PATH", "HOME", "TMPDIR"].into_iter().filter_map(|name| Some((name, env::var_os(name)?))));
    make.env("LC_ALL", "C").envs(REPRODUCIBLE);
    let mut output = std::ffi::OsString::from("O=");
    output.push(objects);
    make.arg("-C").arg(tree).arg(output).arg("ARCH=x86_64");
    make
}

pub(super) fn configure(recipe: &Recipe, tree: &Path, objects: &Path) -> Result<()> {
    let allconfig = objects.join("croft.config");
    fs::write(&allconfig, recipe.allconfig())
        .with_context(|| format!("can't write {}", allconfig.display()))?;
    let dot_config = objects.join(".config");
    let before = fs::read(&dot_config).ok();
    repo::capture(make(tree, objects).arg("-s").arg("allnoconfig").env("KCONFIG_ALLCONFIG", &allconfig))?;
    let text =
        fs::read_to_string(&dot_config).with_context(|| format!("can't read {}", dot_config.display()))?;
    let missing = Configuration::parse(&text).missing(&recipe.requests);
    if !missing.is_empty() {
        let total = recipe.requests.len();
        return Err(ConfigureError::Missing { flavor: recipe.flavor.name(), total, missing }.into());
    }
    if before.is_some_and(|before| before != text.as_bytes()) {
        eprintln!("kernel {}: the configuration changed; building what depends on it", recipe.flavor.name());
    }
    if text.lines().any(|line| line == "CONFIG_RANDSTRUCT=y") {
        seed_layout(recipe, tree, objects)?;
    }
    Ok(())
}

/// Gives the layout of structures a seed that the source decides, in place of kbuild's random one: the same inputs have
/// to give the same bytes. Everyone can know it; what it buys is that attacks made for other kernels miss.
fn seed_layout(recipe: &Recipe, tree: &Path, objects: &Path) -> Result<()> {
    // kbuild makes its own seed once, and then leaves alone what stands there.
    repo::capture(make(tree, objects).args(["-s", "syncconfig"]))?;
    repo::capture(make(tree, objects).args(["-s", "scripts_basic"]))?;
    let (seed, header) = layout_seed(&recipe.source.sha256);
    for (name, content) in [("scripts/basic/randstruct.seed", seed), (LAYOUT_HEADER, header)] {
        let path = objects.join(name);
        // A file that is written again makes everything be built again.
        if fs::read_to_string(&path).is_ok_and(|there| there == content) {
            continue;
        }
        fs::write(&path, content).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

const LAYOUT_HEADER: &str = "include/generated/randstruct_hash.h";

/// Seed and header in the form of the kernel's `scripts/gen-randstruct-seed.sh`.
fn layout_seed(source_sha256: &str) -> (String, String) {
    let digest = |text: &str| hex::encode(Sha256::digest(text));
    let seed = digest(&format!("croft: layout of structures: {source_sha256}"));
    let header = format!("#define RANDSTRUCT_HASHED_SEED \"{}\"\n", digest(&seed));
    (format!("{seed}\n"), header)
}

/// Compilers at a time.
pub(super) fn jobs(wanted: Option<usize>) -> usize {
    wanted.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)).max(1)
}

pub(super) fn compile(
    recipe: &Recipe,
    tree: &Path,
    objects: &Path,
    jobs: Option<usize>,
    whole: bool,
) -> Result<()> {
    let name = recipe.flavor.name();
    let jobs = self::jobs(jobs);
    let log_path = kernel_cache()?.join(format!("{}.log", recipe.key()));
    let mut log = File::create(&log_path).with_context(|| format!("can't create {}", log_path.display()))?;
    let mut progress = Progress::start(recipe.flavor);
    let mut command = make(tree, objects);
    command
        .arg(format!("-j{jobs}"))
        .arg("bzImage")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?);
    let mut child = command.spawn().context("can't start make")?;
    let stdout = child.stdout.take().context("make has no output to read")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("can't read what make prints")?;
        writeln!(log, "{line}").with_context(|| format!("can't write {}", log_path.display()))?;
        progress.line(&line);
    }
    let status = child.wait().context("can't wait for make")?;
    let took = progress.finish(whole && status.success());
    if !status.success() {
        let text = String::from_utf8_lossy(&fs::read(&log_path)?).into_owned();
        bail!(
            "the {name} kernel doesn't build; the end of {}:\n{}",
            log_path.display(),
            repo::last_lines(&text, 25)
        );
    }
    let _ = fs::remove_file(&log_path);
    eprintln!("kernel {name}: built in {}", duration(took.as_secs()));
    Ok(())
}

/// Copies the four files beside their final place, then renames: whole or absent.
fn file_result(recipe: &Recipe, objects: &Path) -> Result<Kernel> {
    let key = recipe.key();
    let cache = kernel_cache()?;
    let partial = cache.join(format!("{key}.partial"));
    remove_dir(&partial)?;
    fs::create_dir_all(&partial).with_context(|| format!("can't create {}", partial.display()))?;
    for name in FILES {
        let made = match name {
            "bzImage" => "arch/x86/boot/bzImage",
            "config" => ".config",
            other => other,
        };
        let target = partial.join(name);
        let copied = fs::copy(objects.join(made), &target);
        copied.with_context(|| format!("can't copy {made} to {}", target.display()))?;
    }
    repo::capture(Command::new("strip").arg("--strip-all").arg(partial.join("vmlinux")))?;
    let dir = cache.join(key);
    fs::rename(&partial, &dir).with_context(|| format!("can't rename {}", partial.display()))?;
    Ok(Kernel { dir })
}

/// Removes what lies between source and results, and waits for nobody: a build under way keeps it.
pub(super) fn remove_work() -> Result<()> {
    let cache = kernel_cache()?;
    let Ok(file) = File::open(cache.join("lock")) else { return Ok(()) };
    if file.try_lock().is_ok() {
        remove_dir(&cache.join("work"))?;
    }
    Ok(())
}

pub(super) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Part of the key of every boot file: raise it when the same inputs give another one.
pub(super) const REVISION: &str = "1";

/// Keeps the newest results, so that the cache stays bounded.
fn forget_old_results(cache: &Path, just_built: &Path) -> Result<()> {
    let mut results: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(cache).with_context(|| format!("can't read {}", cache.display()))? {
        let path = entry?.path();
        let is_result = FILES.iter().all(|name| path.join(name).is_file());
        if is_result && path != just_built {
            results.push((path.metadata()?.modified()?, path));
        }
    }
    results.sort();
    let surplus = results.len().saturating_sub(KEPT_RESULTS - 1);
    results.drain(..surplus).try_for_each(|(_, path)| {
        let _ = fs::remove_file(path.with_extension("objects.tar.zst"));
        remove_dir(&path)
    })
}

#[cfg(test)]
mod tests {
    use super::super::fragment;
    use super::*;

    #[test]
    fn the_failure_lists_every_missing_value_with_its_place() {
        let requests =
            fragment::parse("kernel-config/node/base.config", "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\n")
                .unwrap();
        let missing = Configuration::parse("CONFIG_B=y\n").missing(&requests);
        let text = ConfigureError::Missing { flavor: "node", total: 3, missing }.to_string();
        assert!(
            text.starts_with("2 of 3 requested values are missing from the node kernel's configuration:\n")
        );
        assert!(text.contains("  kernel-config/node/base.config:1: CONFIG_A=y, but"), "{text}");
        assert!(text.contains("  kernel-config/node/base.config:3: CONFIG_C=y, but"), "{text}");
        assert!(!text.contains("CONFIG_B"), "{text}");
    }

    #[test]
    fn old_results_are_forgotten_and_nothing_else_is() {
        let cache = tempfile::tempdir().unwrap();
        let result = |name: &str| {
            let dir = cache.path().join(name);
            fs::create_dir(&dir).unwrap();
            for file in FILES {
                fs::write(dir.join(file), "").unwrap();
            }
            dir
        };
        let dirs: Vec<_> = (0..KEPT_RESULTS + 3).map(|index| result(&format!("node-{index:02}"))).collect();
        let unrelated = cache.path().join("work");
        fs::create_dir(&unrelated).unwrap();
        let newest = dirs.last().unwrap();
        forget_old_results(cache.path(), newest).unwrap();
        assert_eq!(dirs.iter().filter(|dir| dir.exists()).count(), KEPT_RESULTS);
        assert!(newest.exists() && unrelated.exists());
    }

    #[test]
    fn the_layout_of_structures_follows_the_source_and_nothing_else() {
        let (seed, header) = layout_seed("aa");
        assert_eq!((seed.clone(), header.clone()), layout_seed("aa"));
        assert_ne!(seed, layout_seed("ab").0);
        assert_eq!(seed.len(), 65, "the plugin reads 64 hexadecimal digits and a line's end");
        let hash = hex::encode(Sha256::digest(seed.trim_end()));
        assert_eq!(header, format!("#define RANDSTRUCT_HASHED_SEED \"{hash}\"\n"));
    }

    #[test]
    fn the_callers_environment_does_not_reach_the_build() {
        let command = make(Path::new("/source"), Path::new("/objects"));
        let names: Vec<_> = command.get_envs().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        let allowed = |name: &String| {
            ["PATH", "HOME", "TMPDIR", "LC_ALL"].contains(&name.as_str()) || name.starts_with("KBUILD_BUILD_")
        };
        assert!(names.iter().all(allowed), "{names:?}");
    }
}
