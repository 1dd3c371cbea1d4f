//! `scripts/demo` after its set-up: a grid on this machine, a deployed nginx that answers, a power cut, the end. With
//! `--market`: three farms, five nodes, and bots that deal with each other in six scenes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use croft_it::grid::images;
use croft_it::market::Market;
use croft_it::scene::{Say, Scene};

const USAGE: &str =
    "usage: demo [--market [--simulated]] [--keep] [--vmm cloud-hypervisor|alioth] [--replicas N]
  --market      bots find, negotiate, pay, approve and heal, in six scenes; alone or with --vmm
  --simulated   with --market: every node is simulated, QEMU is not needed
  --keep        leave the grid up until Ctrl-C, and say how to use it
  --vmm NAME    the image to boot; default: the one with cloud-hypervisor, else alioth
  --replicas N  how many processes keep the ledger; with 4, one of them is killed on the way; default: 1";

struct Options {
    market: bool,
    simulated: bool,
    keep: bool,
    vmm: Option<String>,
    replicas: u16,
}

fn options() -> Result<Options> {
    let mut options = Options { market: false, simulated: false, keep: false, vmm: None, replicas: 1 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--market" => options.market = true,
            "--simulated" => options.simulated = true,
            "--keep" => options.keep = true,
            "--vmm" => options.vmm = Some(arguments.next().context(USAGE)?),
            "--replicas" => {
                let count = arguments.next().and_then(|n| n.parse().ok()).filter(|n| (1..=64).contains(n));
                options.replicas = count.context("--replicas takes a number from 1 to 64")?;
            }
            "--help" | "-h" => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => bail!("unknown argument '{other}'\n{USAGE}"),
        }
    }
    if options.market && (options.keep || options.replicas > 1) {
        bail!("--market goes with --vmm only\n{USAGE}");
    }
    if options.simulated && !options.market {
        bail!("--simulated goes with --market only\n{USAGE}");
    }
    Ok(options)
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let options = options()?;
    let started = Instant::now();
    let mut say = |text: &str| {
        println!("[{:>5.1} s] {text}", started.elapsed().as_secs_f64());
        let _ = std::io::stdout().flush();
    };
    if options.simulated {
        return market(Vec::new(), &mut say).await;
    }
    let mut images = images()?;
    if let Some(wanted) = &options.vmm {
        images.retain(|(vmm, _)| vmm == wanted);
    }
    let (vmm, image) =
        images.first().cloned().context("there is no image with that VMM: run 'cargo xtask image'")?;
    if options.market {
        return market(images.into_iter().map(|(_, image)| image).collect(), &mut say).await;
    }
    say(&format!("node image with {vmm}: {}", image.display()));
    let dir = tempfile::tempdir().context("a directory for the grid")?;
    let cache = std::env::var_os("CROFT_DEMO_CACHE").map_or_else(|| dir.path().to_owned(), PathBuf::from);

    let mut scene = Scene::begin(dir.path(), &image, options.replicas, &mut say).await?;
    scene.deploy(&cache, &mut say).await?;
    scene.show(&["--bot", "alice", "ps"], &mut say).await?;
    scene.show(&["--bot", "alice", "logs", "web", "--tail", "5"], &mut say).await?;
    scene.show(&["--bot", "alice", "explain", "web"], &mut say).await?;
    say("writing to both volumes through nginx, and waiting until it is on the disk");
    scene.write("written before the power cut\n").await?;
    scene.power_cut(&mut say).await?;
    scene.read("written before the power cut\n").await?;
    say("both volumes still hold what was written");
    if options.keep {
        keep(&scene).await?;
    }
    scene.stop(&mut say).await?;
    scene.show(&["--bot", "farmer", "farm", "nodes"], &mut say).await?;
    scene.show(&["--bot", "alice", "history", "web"], &mut say).await?;
    if options.replicas > 1 {
        scene.show(&["grid", "status"], &mut say).await?;
    }
    let Scene { grid, mut node, table, .. } = scene;
    say("switching the machine off");
    node.powerdown(std::time::Duration::from_secs(120)).await.context("the machine ends in order")?;
    grid.stop().await?;
    println!("\nWhat happened, with {vmm}:\n{}", table.show());
    Ok(())
}

/// The six scenes, each with its time. Interrupted, it ends what it started: processes go with their handles.
async fn market(images: Vec<PathBuf>, say: Say<'_>) -> Result<()> {
    tokio::select! {
        done = scenes(images, say) => done,
        _ = tokio::signal::ctrl_c() => bail!("it was interrupted"),
    }
}

async fn scenes(images: Vec<PathBuf>, say: Say<'_>) -> Result<()> {
    let dir = tempfile::tempdir().context("a directory for the grid")?;
    let mut market = Market::begin(dir.path(), &images, &croft_it::oci::cache(), say).await?;
    market.play(say).await?;
    let table = market.table.clone();
    market.end().await?;
    println!("\nWhat happened, with nobody watching:\n{}", table.show());
    Ok(())
}

async fn keep(scene: &Scene) -> Result<()> {
    println!(
        "\nThe grid stays up. From another terminal:\n  curl http://{}/\n  {} --bot alice ps\n  {} --bot alice logs web --follow\n\
         Press Ctrl-C here to go on to the end.",
        scene.web(),
        scene.grid.shown_command(),
        scene.grid.shown_command(),
    );
    tokio::signal::ctrl_c().await.context("waiting for Ctrl-C")
}
