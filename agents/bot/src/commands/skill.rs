//! `croft skill`: code that the bots of a home may be extended with. It must never run one but to try whether it starts, and
//! when it is asked to.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use croft_protocol::{BotId, Hash, Name};
use croft_skills::hooks::examples;
use croft_skills::{Answer, Hook, Host, PackError, SignedSkill, Skill, SkillFileError, WIT, limits};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Context;
use crate::exit::{Exit, Failure};
use crate::files;
use crate::flags::SkillCommand;
use crate::home::{AddSkillError, Home};
use crate::terminal::{printable, push, table};

/// A question as people write it.
const QUESTION_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
enum SkillProblem {
    #[error("there is no file {path}")]
    Missing { path: PathBuf },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("can't write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} has more than {limit} bytes")]
    TooLarge { path: PathBuf, limit: usize },
    #[error("{path}")]
    File { path: PathBuf, source: SkillFileError },
    #[error("{path} can't be packed")]
    Pack { path: PathBuf, source: PackError },
    #[error("skill '{name}' can't be signed")]
    Sign { name: Name, source: SkillFileError },
    #[error("{path} is signed by {author}, not by {wanted}: it is not added")]
    Author { path: PathBuf, author: BotId, wanted: BotId },
    #[error(
        "{path} is no question for the hook {hook}: 'croft skill test --json' shows one that is ({reason})"
    )]
    Question { path: PathBuf, hook: Hook, reason: String },
    #[error("skill '{name}' did not answer: {hooks}")]
    Silent { name: Name, hooks: String },
}

/// A skill, as people read it.
#[derive(Debug, Serialize)]
struct SkillView {
    name: Name,
    version: u32,
    hooks: Vec<Hook>,
    component: Hash,
    author: BotId,
    /// Of the component.
    bytes: usize,
}

impl SkillView {
    fn of(skill: &SignedSkill) -> Self {
        let manifest = skill.manifest().clone();
        Self {
            name: manifest.name,
            version: manifest.version,
            hooks: manifest.hooks,
            component: manifest.component,
            author: manifest.author,
            bytes: skill.component().len(),
        }
    }

    fn hooks(&self) -> String {
        self.hooks.iter().map(|hook| hook.name()).collect::<Vec<_>>().join(", ")
    }
}

pub(super) fn skill(c: &mut Context<'_>, command: SkillCommand) -> Result<(), Failure> {
    match command {
        SkillCommand::Add { file, author } => add(c, &file, author),
        SkillCommand::List => list(c),
        SkillCommand::Test { skill, hook, input } => test(c, &skill, hook, input.as_deref()),
        SkillCommand::Remove { name } => remove(c, name),
        SkillCommand::Pack { module, name, version, out } => pack(c, &module, name, version, out),
        SkillCommand::Interface => interface(c),
    }
}

#[derive(Serialize)]
struct Added {
    skill: SkillView,
    /// The version that was here before.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<u32>,
}

fn add(c: &mut Context<'_>, file: &Path, wanted: Option<BotId>) -> Result<(), Failure> {
    let skill = read_skill(file)?;
    let author = skill.manifest().author;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != author) {
        return Err(Failure::refused(SkillProblem::Author { path: file.to_owned(), author, wanted }));
    }
    // Nobody finds out when it is needed that it can't even start.
    load(&skill)?;
    let replaced = c.home.add_skill(&skill)?;
    let added = Added { skill: SkillView::of(&skill), replaced };
    c.terminal.result(&added, |a| {
        let SkillView { name, version, author, .. } = &a.skill;
        let what = match a.replaced {
            Some(before) if before == *version => format!("skill '{name}' {version} is here already"),
            Some(before) => format!("skill '{name}' {version} takes the place of {before}"),
            None => format!("skill '{name}' {version} is added"),
        };
        format!(
            "{what}: {}\n  signed by {author}; nothing uses it until a command is told so with --skill\n",
            a.skill.hooks()
        )
    })
}

#[derive(Serialize)]
struct Skills {
    skills: Vec<SkillView>,
}

fn list(c: &mut Context<'_>) -> Result<(), Failure> {
    let mut skills = Vec::new();
    for name in c.home.skills()? {
        match c.home.skill(&name) {
            Ok(skill) => skills.push(SkillView::of(&skill)),
            // One that is damaged hides no other.
            Err(error) => c.note(&printable(&error.to_string())),
        }
    }
    c.terminal.result(&Skills { skills }, |s| {
        if s.skills.is_empty() {
            return "no skills: add one with 'croft skill add FILE'\n".to_owned();
        }
        let row = |s: &SkillView| {
            vec![s.name.to_string(), s.version.to_string(), s.hooks(), s.author.short(), s.bytes.to_string()]
        };
        table(
            &["SKILL", "VERSION", "HOOKS", "AUTHOR", "BYTES"],
            &s.skills.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

#[derive(Serialize)]
struct Tested {
    name: Name,
    version: u32,
    answers: Vec<Asked>,
}

/// One question with what came of it.
#[derive(Serialize)]
struct Asked {
    hook: Hook,
    question: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    log: Vec<String>,
    fuel: u64,
    fuel_limit: u64,
}

fn test(c: &mut Context<'_>, skill: &str, hook: Option<Hook>, input: Option<&Path>) -> Result<(), Failure> {
    let signed = find(&c.home, skill)?;
    let skill = load(&signed)?;
    let hooks = hook.map_or_else(|| signed.manifest().hooks.clone(), |hook| vec![hook]);
    let mut answers = Vec::new();
    for hook in hooks {
        answers.push(match hook {
            Hook::Pricing => ask(hook, input, examples::demand(), |q| skill.price(q))?,
            Hook::Scoring => ask(hook, input, examples::offer(), |q| skill.surcharge(q))?,
            Hook::Approval => ask(hook, input, examples::request(), |q| skill.decide(q))?,
            Hook::Messages => ask(hook, input, examples::message(), |q| skill.react(q))?,
        });
    }
    let name = signed.manifest().name.clone();
    let tested = Tested { name: name.clone(), version: signed.manifest().version, answers };
    c.terminal.result(&tested, tested_text)?;
    let silent: Vec<String> = tested
        .answers
        .iter()
        .filter_map(|asked| Some(format!("{}: {}", asked.hook, asked.fault.as_ref()?)))
        .collect();
    if silent.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(SkillProblem::Silent { name, hooks: silent.join("; ") }))
}

/// Asks one hook the question in a file, or one that is like a real one.
fn ask<Q: Serialize + DeserializeOwned, A: Serialize>(
    hook: Hook,
    input: Option<&Path>,
    example: Q,
    skill: impl FnOnce(Q) -> Answer<A>,
) -> Result<Asked, Failure> {
    let question: Q = match input {
        None => example,
        Some(path) => {
            let bytes = read(path, QUESTION_BYTES)?;
            serde_json::from_slice(&bytes).map_err(|error| {
                let reason = error.to_string();
                Failure::usage(SkillProblem::Question { path: path.to_owned(), hook, reason })
            })?
        }
    };
    let shown = serde_json::to_value(&question).map_err(Failure::failed)?;
    let Answer { result, log, fuel } = skill(question);
    let (answer, fault) = match result {
        Ok(answer) => (Some(serde_json::to_value(answer).map_err(Failure::failed)?), None),
        Err(fault) => (None, Some(fault.to_string())),
    };
    Ok(Asked { hook, question: shown, answer, fault, log, fuel, fuel_limit: limits::FUEL })
}

fn tested_text(t: &Tested) -> String {
    let mut text = format!("skill '{}' {}\n", t.name, t.version);
    for asked in &t.answers {
        match (&asked.answer, &asked.fault) {
            (Some(answer), _) => push!(text, "  {}: {}\n", asked.hook, printable(&answer.to_string())),
            (None, fault) => {
                let fault = fault.as_deref().unwrap_or_default();
                push!(text, "  {}: no answer; {}\n", asked.hook, printable(fault));
            }
        }
        for line in &asked.log {
            push!(text, "    log: {}\n", printable(line));
        }
        push!(text, "    used {} of {} instructions\n", asked.fuel, asked.fuel_limit);
    }
    text
}

fn remove(c: &mut Context<'_>, name: Name) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Removed {
        removed: Name,
    }
    c.home.remove_skill(&name)?;
    c.terminal.result(&Removed { removed: name }, |r| format!("skill '{}' is removed\n", r.removed))
}

#[derive(Serialize)]
struct Packed {
    out: PathBuf,
    skill: SkillView,
}

fn pack(
    c: &mut Context<'_>,
    module: &Path,
    name: Name,
    version: u32,
    out: Option<PathBuf>,
) -> Result<(), Failure> {
    let bytes = read(module, limits::MODULE_BYTES)?;
    let (component, hooks) = croft_skills::component(&bytes)
        .map_err(|source| Failure::usage(SkillProblem::Pack { path: module.to_owned(), source }))?;
    let (_, key) = c.acting_key()?;
    if !key.links().is_empty() {
        c.note("this bot's key was replaced: whoever has a version by the former key removes it first, 'croft skill remove'");
    }
    let skill = SignedSkill::sign(&key, name.clone(), version, hooks, component)
        .map_err(|source| Failure::usage(SkillProblem::Sign { name: name.clone(), source }))?;
    load(&skill)?;
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{name}.skill")));
    files::aside(&out, &skill.encode(), true)
        .and_then(|file| file.replace(&out, true))
        .map_err(|source| Failure::failed(SkillProblem::Write { path: out.clone(), source }))?;
    let packed = Packed { out, skill: SkillView::of(&skill) };
    c.terminal.result(&packed, |p| {
        let SkillView { name, version, bytes, .. } = &p.skill;
        format!(
            "{}: skill '{name}' {version}, {} ({bytes} bytes)\n  try it with 'croft skill test {}'\n",
            p.out.display(),
            p.skill.hooks(),
            p.out.display()
        )
    })
}

fn interface(c: &mut Context<'_>) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Interface {
        package: &'static str,
        text: &'static str,
    }
    c.terminal.result(&Interface { package: "croft:skill@1.0.0", text: WIT }, |i| i.text.to_owned())
}

fn load(skill: &SignedSkill) -> Result<Skill, Failure> {
    Ok(Host::new().map_err(Failure::failed)?.load(skill)?)
}

/// One of the home, or a file; a name is never taken for a file.
fn find(home: &Home, what: &str) -> Result<SignedSkill, Failure> {
    match Name::new(what) {
        Ok(name) => Ok(home.skill(&name)?),
        Err(_) => read_skill(Path::new(what)),
    }
}

fn read_skill(path: &Path) -> Result<SignedSkill, Failure> {
    let bytes = read(path, limits::FILE_BYTES)?;
    SignedSkill::decode(&bytes)
        .map_err(|source| Failure::usage(SkillProblem::File { path: path.to_owned(), source }))
}

fn read(path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    let failed = |source: std::io::Error| {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::NotFound => Failure::not_found(SkillProblem::Missing { path }),
            _ => Failure::failed(SkillProblem::Read { path, source }),
        }
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(Failure::usage(SkillProblem::TooLarge { path: path.to_owned(), limit }));
    }
    Ok(bytes)
}

impl From<AddSkillError> for Failure {
    fn from(error: AddSkillError) -> Self {
        match error {
            AddSkillError::Home(error) => error.into(),
            AddSkillError::Replace(error) => Self::new(Exit::Refused, error),
        }
    }
}
