//! `croft-fuzz`: lists the targets, makes the corpus, runs one input (AFL) or many.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use croft_fuzz::{all, corpus, engine, find};

const USAGE: &str = "croft-fuzz list | corpus [--check] | run TARGET [FILE] | fuzz TARGET ROUNDS [SEED]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match command(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(words: &[&str]) -> Result<()> {
    match words {
        ["list"] => {
            for target in all() {
                println!("{:28} {} (from {})", target.name, target.decodes, target.sent_by);
            }
        }
        ["corpus"] => corpus::write(&all())?,
        ["corpus", "--check"] => {
            let differences = corpus::differences(&all())?;
            if !differences.is_empty() {
                bail!("the corpus is not current, run `croft-fuzz corpus`:\n{}", differences.join("\n"));
            }
        }
        // A panic must end the process: it is how AFL knows.
        ["run", name] => (target(name)?.run)(&input(None)?),
        ["run", name, file] => (target(name)?.run)(&input(Some(file.into()))?),
        ["fuzz", name, rounds] => fuzz(name, rounds, "0")?,
        ["fuzz", name, rounds, seed] => fuzz(name, rounds, seed)?,
        _ => bail!("usage: {USAGE}"),
    }
    Ok(())
}

fn target(name: &str) -> Result<croft_fuzz::Target> {
    find(name).with_context(|| format!("there is no target '{name}': see `croft-fuzz list`"))
}

fn input(file: Option<PathBuf>) -> Result<Vec<u8>> {
    if let Some(file) = file {
        return std::fs::read(&file).with_context(|| format!("can't read {}", file.display()));
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("can't read the input")?;
    Ok(bytes)
}

fn fuzz(name: &str, rounds: &str, seed: &str) -> Result<()> {
    let rounds = rounds.parse().with_context(|| format!("'{rounds}' is no number of rounds"))?;
    let seed = seed.parse().with_context(|| format!("'{seed}' is no seed: use a whole number"))?;
    let targets = if name == "all" { all() } else { vec![target(name)?] };
    for target in targets {
        engine::fuzz(&target, &corpus::inputs(&target)?, rounds, seed)?;
        println!("{}: {rounds} inputs hold", target.name);
    }
    Ok(())
}
