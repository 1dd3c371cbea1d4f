//! Makes real OCI images from the distribution's packages, with tools that are not ours: mmdebstrap unpacks the
//! packages, umoci makes the layout.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const CONFIG: &str = include_str!("../fixtures/nginx/nginx.conf");
const SHOP: &str = include_str!("../fixtures/shop/shop.py");
const INDEX: &str = include_str!("../fixtures/nginx/index.html");
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\n";

/// Tag of the image inside the layout of nginx.
pub const TAG: &str = "nginx";

/// Where layouts are kept from run to run: `CROFT_DEMO_CACHE`, or below `CROFT_CACHE` or the home.
#[must_use]
pub fn cache() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    of("CROFT_DEMO_CACHE")
        .or_else(|| of("CROFT_CACHE").map(|cache| cache.join("demo")))
        .unwrap_or_else(|| of("HOME").unwrap_or_default().join(".cache/croft/demo"))
}

/// What an image is made of.
struct Content {
    /// Name of the layout and tag of the image.
    name: &'static str,
    packages: &'static str,
    files: &'static [(&'static str, &'static str)],
    config: &'static [&'static str],
}

/// The OCI layout of nginx in `dir`, made when it is not there yet. Takes some 20 seconds the first time.
///
/// # Errors
/// Names the tool that failed, with its last words.
pub fn nginx_layout(dir: &Path) -> Result<PathBuf> {
    layout(
        dir,
        &Content {
            name: TAG,
            packages: "nginx-light",
            files: &[
                ("etc/passwd", PASSWD),
                ("etc/group", GROUP),
                ("etc/nginx/nginx.conf", CONFIG),
                ("srv/www/index.html", INDEX),
                ("data/.keep", ""),
                ("shared/.keep", ""),
                ("run/.keep", ""),
            ],
            config: &[
                "--config.entrypoint=/usr/sbin/nginx",
                "--config.env=PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "--config.workingdir=/",
                "--config.stopsignal=SIGQUIT",
                "--config.exposedports=80/tcp",
            ],
        },
    )
}

/// The same of a web server and a database, in one image: which of them a microVM is, its command says.
///
/// # Errors
/// As [`nginx_layout`].
pub fn shop_layout(dir: &Path) -> Result<PathBuf> {
    layout(
        dir,
        &Content {
            name: "shop",
            packages: "python3,redis-server,dash",
            files: &[
                ("etc/passwd", PASSWD),
                ("etc/group", GROUP),
                ("srv/shop.py", SHOP),
                ("data/.keep", ""),
                ("run/.keep", ""),
                ("tmp/.keep", ""),
            ],
            config: &["--config.env=PATH=/usr/sbin:/usr/bin:/sbin:/bin", "--config.workingdir=/"],
        },
    )
}

fn layout(dir: &Path, content: &Content) -> Result<PathBuf> {
    let layout = dir.join(format!("{}-oci", content.name));
    if layout.join("index.json").is_file() {
        return Ok(layout);
    }
    fs::create_dir_all(dir)?;
    let work = tempfile::tempdir_in(dir)?;
    let root = work.path().join("root");
    let mut bootstrap = Command::new("mmdebstrap");
    let include = format!("--include={}", content.packages);
    bootstrap.args(["--quiet", "--variant=extract", &include, "bookworm"]).arg(&root);
    for source in apt_sources()? {
        bootstrap.arg(source);
    }
    run(&mut bootstrap)?;
    for (path, text) in content.files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a file has a directory")?)?;
        fs::write(path, text)?;
    }
    for unwanted in ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/dpkg"] {
        let _ = fs::remove_dir_all(root.join(unwanted));
    }
    let building = work.path().join("layout");
    let image = format!("{}:{}", building.display(), content.name);
    let bundle = work.path().join("bundle");
    run(Command::new("umoci").arg("init").arg("--layout").arg(&building))?;
    run(Command::new("umoci").args(["new", "--image", &image]))?;
    run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
    run(Command::new("cp").arg("-a").arg(format!("{}/.", root.display())).arg(bundle.join("rootfs")))?;
    run(Command::new("umoci").args(["repack", "--image", &image]).arg(&bundle))?;
    run(Command::new("umoci").args(["config", "--image", &image]).args(content.config))?;
    fs::rename(&building, &layout).context("moving the finished layout into place")?;
    Ok(layout)
}

/// The machine's own package sources of the base suite, so that no host's name stands in our tree.
fn apt_sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let lists = fs::read_dir("/etc/apt/sources.list.d")
        .map(|d| d.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    let all: Vec<PathBuf> =
        std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain::<Vec<PathBuf>>(lists).collect();
    for path in all {
        let known = path.extension().is_some_and(|e| e == "list" || e == "sources");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let base = text
            .lines()
            .filter(|l| !l.trim_start().starts_with('#'))
            .any(|line| line.split_whitespace().any(|word| word == "bookworm"));
        if known && base {
            found.push(path);
        }
    }
    ensure!(!found.is_empty(), "no package source of bookworm under /etc/apt: add one and run again");
    Ok(found)
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("can't start {program}: run scripts/setup"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = words.lines().rev().take(5).collect();
        bail!(
            "{program} failed ({}): {}",
            output.status,
            last.into_iter().rev().collect::<Vec<_>>().join("\n")
        );
    }
    Ok(())
}
