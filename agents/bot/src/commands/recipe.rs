//! `croft recipe`: what experts wrote down, and what others make of it.
//!
//! ```text
//!   file ──names to hashes──> text ──upload──> blobs ──publish──> record
//!   record (proved) ──parse──> parameters ──fetch manifests, values──> deploy file ──> as 'croft deploy'
//! ```
//! A recipe is a stranger's text. It must never decide which file or variable of this machine is read, and what is shown
//! of it goes through [`printable`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use croft_protocol::image::ImageManifest;
use croft_protocol::query::Query;
use croft_protocol::record::RecipeBody;
use croft_protocol::{Body, BotId, Command, Hash, Kind, Name, Record, RecordId, StateKey, limits};
use serde::Serialize;

use super::deploy::{HomeImages, deploy_file};
use super::show::BotNames;
use super::{Acting, CommandError, Context};
use crate::deploy_file::{DeployFile, DeployFileError, ImageDefaults as _, ResolvedImage};
use crate::exit::Failure;
use crate::files;
use crate::flags::{DeployFlags, RecipeDeployFlags, RecipeRef};
use crate::grid::{Grid, GridError};
use crate::home::{Home, HomeError};
use crate::market::upload;
use crate::recipe::{Parameter, RecipeError, Template, with_hashes};
use crate::terminal::{printable, push, show_time, table};

/// Bytes of a generated secret, before they become hex digits.
const SECRET_BYTES: usize = 24;

#[derive(Debug, thiserror::Error)]
enum CookError {
    #[error("can't read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not UTF-8")]
    NotText { path: PathBuf },
    #[error(
        "bot '{author}' has no recipe '{name}' on grid '{grid}': 'croft recipe list' has those that are offered"
    )]
    NoRecipe { author: Name, name: Name, grid: Name },
    #[error("recipe {recipe} has no version {version}: its newest is {newest}")]
    NoVersion { recipe: RecipeRef, version: u64, newest: u64 },
    #[error(
        "recipe {recipe} was withdrawn by its author: {}; to deploy it all the same, name a version with --version",
        printable(reason)
    )]
    Withdrawn { recipe: RecipeRef, reason: String },
    #[error(
        "recipe {recipe} names image {manifest}, which no replica has any more: ask '{author}' to publish it again"
    )]
    ImageGone { recipe: RecipeRef, author: Name, manifest: Hash },
    #[error("image {manifest} of recipe {recipe} is no image")]
    Image { recipe: RecipeRef, manifest: Hash, source: croft_protocol::image::InvalidManifest },
    #[error(
        "{recipe}: image '{image}' is named, but not by the hash of a manifest: its author published it by other means"
    )]
    NotPinned { recipe: RecipeRef, image: String },
    #[error("{file}, image '{image}': {reason}")]
    NoImage { file: PathBuf, image: String, reason: String },
    #[error(
        "recipe '{name}' is not on the ledger although the command was final: look with 'croft recipe show'"
    )]
    NotPublished { name: Name },
}

#[derive(Serialize)]
struct UsedImage {
    name: String,
    manifest: Hash,
}

#[derive(Serialize)]
struct Published {
    recipe: String,
    author: Name,
    name: Name,
    version: u64,
    record: Hash,
    title: String,
    images: Vec<UsedImage>,
    height: u64,
}

pub(super) async fn publish(c: &mut Context<'_>, path: &Path) -> Result<(), Failure> {
    let text = read(path)?;
    let label = path.display().to_string();
    let template = Template::parse(&label, &text).map_err(Failure::usage)?;
    let mut hashes = BTreeMap::new();
    let images = HomeImages { home: c.home.clone() };
    for image in template.images() {
        let (hash, _) = images.find(&image).map_err(|reason| {
            Failure::not_found(CookError::NoImage { file: path.to_owned(), image: image.clone(), reason })
        })?;
        hashes.insert(image, hash);
    }
    // Not before the deploy file inside is one: an expert hears of mistakes here, not from deployers.
    let sample = template.sample().map_err(Failure::usage)?;
    DeployFile::parse(path, &sample).map_err(|error| Failure::usage(in_recipe(&label, error)))?;
    let pinned = with_hashes(&text, &hashes).map_err(Failure::usage)?;
    Template::parse(&label, &pinned).map_err(Failure::usage)?;

    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let store = c.home.blobs();
    for (name, manifest) in &hashes {
        let image = ResolvedImage { name: name.clone(), manifest: *manifest };
        upload::upload(&acting.grid, &store, &image, &mut *c.progress()).await?;
    }
    let (name, title) = (template.name.clone(), template.title.clone());
    let command = Command::PublishRecipe { name: name.clone(), title: title.clone(), text: pinned };
    let record = submitted(&acting, &name, &command).await?;
    acting.grid.close().await;
    let published = Published {
        recipe: format!("{}/{name}", acting.name),
        author: acting.name,
        name,
        version: record.version,
        record: record.hash(),
        title,
        images: hashes.into_iter().map(|(name, manifest)| UsedImage { name, manifest }).collect(),
        height: record.height,
    };
    c.terminal.result(&published, |p| {
        format!(
            "recipe {} is on the ledger as version {}, in block {}\n  others deploy it with 'croft recipe deploy {}'\n",
            p.recipe, p.version, p.height, p.recipe
        )
    })
}

/// Submits a command about a recipe of the acting bot; the recipe's newest record.
async fn submitted(acting: &Acting, name: &Name, command: &Command) -> Result<Record, Failure> {
    acting.grid.submit(&acting.key, command).await?;
    let record = acting.grid.record(RecordId::recipe(&acting.id(), name)).await?;
    record.ok_or_else(|| Failure::failed(CookError::NotPublished { name: name.clone() }))
}

#[derive(Serialize)]
struct Withdrawn {
    recipe: String,
    author: Name,
    name: Name,
    version: u64,
    reason: String,
    height: u64,
}

pub(super) async fn withdraw(c: &mut Context<'_>, name: Name, reason: String) -> Result<(), Failure> {
    let acting = c.acting()?;
    acting.must_be_registered().await?;
    let command = Command::WithdrawRecipe { name: name.clone(), reason: reason.clone() };
    let record = submitted(&acting, &name, &command).await?;
    acting.grid.close().await;
    let withdrawn = Withdrawn {
        recipe: format!("{}/{name}", acting.name),
        author: acting.name,
        name,
        version: record.version,
        reason,
        height: record.height,
    };
    c.terminal.result(&withdrawn, |w| {
        format!("recipe {} is withdrawn since block {}; what runs goes on\n", w.recipe, w.height)
    })
}

#[derive(Serialize)]
struct Listed {
    recipe: String,
    author: String,
    name: Name,
    version: u64,
    title: String,
    time_ms: u64,
}

#[derive(Serialize)]
struct List {
    recipes: Vec<Listed>,
}

pub(super) async fn list(c: &mut Context<'_>, author: Option<Name>) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let author = match author {
        None => None,
        Some(name) => Some(bot(&grid, &name).await?),
    };
    let mut ids = grid.find_unproved(&Query::Recipes { author }).await?;
    ids.retain(|id| id.kind == Kind::Recipe);
    ids.dedup();
    let keys: Vec<StateKey> = ids.iter().map(|id| StateKey::Record(*id)).collect();
    let proved = grid.get(&keys).await?;
    let mut names = BotNames::default();
    let mut recipes = Vec::new();
    for bytes in proved.values.into_iter().flatten() {
        let record: Record = croft_protocol::decode("a recipe", &bytes, limits::RECORD_BYTES)
            .map_err(|source| GridError::Malformed { grid: grid.name().clone(), what: "a recipe", source })?;
        let Body::Recipe(body) = record.body else { continue };
        // A replica may show what was not asked for.
        if body.withdrawn.is_some() || author.is_some_and(|author| body.author != author) {
            continue;
        }
        let author = names.name(&grid, body.author).await?;
        recipes.push(Listed {
            recipe: format!("{author}/{}", body.name),
            author,
            name: body.name,
            version: record.version,
            title: body.title,
            time_ms: record.time_ms,
        });
    }
    grid.close().await;
    recipes.sort_by(|a, b| a.recipe.cmp(&b.recipe));
    c.terminal.result(&List { recipes }, |list| {
        if list.recipes.is_empty() {
            return "no recipes are offered: experts publish them with 'croft recipe publish'\n".to_owned();
        }
        let rows: Vec<Vec<String>> = list
            .recipes
            .iter()
            .map(|r| {
                let title = printable(&r.title);
                vec![printable(&r.recipe), r.version.to_string(), show_time(r.time_ms), title]
            })
            .collect();
        table(&["RECIPE", "VERSION", "PUBLISHED", "TITLE"], &rows)
    })
}

#[derive(Serialize)]
struct NamedParameter {
    name: Name,
    #[serde(flatten)]
    parameter: Parameter,
}

#[derive(Serialize)]
struct Shown {
    recipe: String,
    author: Name,
    author_id: BotId,
    name: Name,
    version: u64,
    record: Hash,
    title: String,
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    withdrawn: Option<String>,
    time_ms: u64,
    parameters: Vec<NamedParameter>,
    text: String,
}

pub(super) async fn show(
    c: &mut Context<'_>,
    recipe: &RecipeRef,
    version: Option<u64>,
    only_text: bool,
) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let (record, body) = find(&grid, recipe, version).await?;
    grid.close().await;
    // What its author published by other means may be no recipe at all; its text is shown all the same.
    let template = if only_text { None } else { Some(parsed(recipe, &record, &body)?) };
    let (description, parameters) = template.map(|t| (t.description, t.parameters)).unwrap_or_default();
    let shown = Shown {
        recipe: recipe.to_string(),
        author: recipe.author.clone(),
        author_id: body.author,
        name: body.name,
        version: record.version,
        record: record.hash(),
        title: body.title,
        description,
        withdrawn: body.withdrawn,
        time_ms: record.time_ms,
        parameters: parameters
            .into_iter()
            .map(|(name, parameter)| NamedParameter { name, parameter })
            .collect(),
        text: body.text,
    };
    c.terminal.result(&shown, |s| if only_text { printable_lines(&s.text) } else { shown_text(s) })
}

fn printable_lines(text: &str) -> String {
    text.lines().map(|line| printable(line) + "\n").collect()
}

fn shown_text(s: &Shown) -> String {
    let mut text = format!(
        "{}  {}\n  version {} of {}, record {}\n",
        s.recipe,
        printable(&s.title),
        s.version,
        show_time(s.time_ms),
        s.record
    );
    if let Some(reason) = &s.withdrawn {
        push!(text, "  WITHDRAWN by its author: {}\n", printable(reason));
    }
    if !s.description.is_empty() {
        push!(text, "\n{}", printable_lines(&s.description));
    }
    if !s.parameters.is_empty() {
        let rows: Vec<Vec<String>> = s
            .parameters
            .iter()
            .map(|p| {
                let default = p.parameter.default.as_deref().map_or_else(|| "(needed)".to_owned(), printable);
                vec![p.name.to_string(), p.parameter.takes(), default, printable(&p.parameter.description)]
            })
            .collect();
        push!(text, "\n{}", table(&["PARAMETER", "TAKES", "DEFAULT", "WHAT IT IS"], &rows));
    }
    text
}

pub(super) async fn deploy(c: &mut Context<'_>, flags: RecipeDeployFlags) -> Result<(), Failure> {
    let RecipeDeployFlags { recipe, name, settings, version, country, duration, max_price, .. } = flags;
    let acting = c.acting()?;
    let (record, body) = find(&acting.grid, &recipe, version).await?;
    if let Some(reason) = body.withdrawn.clone().filter(|_| version.is_none()) {
        return Err(Failure::refused(CookError::Withdrawn { recipe, reason }));
    }
    let template = parsed(&recipe, &record, &body)?;
    fetch_images(&acting.grid, &c.home, &recipe, &template).await?;
    let name = name.unwrap_or_else(|| template.name.clone());
    let given = values(&recipe, settings)?;
    let mut generated = BTreeMap::new();
    for parameter in template.to_generate(&given) {
        let path = secret(&c.home, acting.grid.name(), &acting.name, &name, &parameter)?;
        generated.insert(parameter, path);
    }
    let text = template.render(&name, &given, &generated).map_err(Failure::usage)?;
    let label = format!("recipe {recipe} (version {})", record.version);
    let mut file =
        DeployFile::parse(Path::new(&label), &text).map_err(|e| Failure::usage(in_recipe(&label, e)))?;
    if !country.is_empty() {
        file.placement.countries = country;
    }
    file.terms.duration_s = duration.unwrap_or(file.terms.duration_s);
    file.terms.max_price = max_price.or(file.terms.max_price);
    c.note(&format!(
        "recipe {recipe}, version {}, record {}: {}",
        record.version,
        record.hash(),
        printable(&body.title)
    ));
    acting.grid.close().await;
    let flags = DeployFlags {
        file: PathBuf::from(label),
        dry_run: flags.dry_run,
        detach: flags.detach,
        timeout: flags.timeout,
        // The recipe's, or what was given instead.
        max_price: None,
        window: croft_market::order::WINDOW_MS / 1000,
        explain: flags.explain,
        skill: None,
        yes: flags.yes,
    };
    deploy_file(c, &file, &flags).await
}

/// Values by parameter; each once, and the files of secrets from where we are.
fn values(recipe: &RecipeRef, settings: Vec<(Name, String)>) -> Result<BTreeMap<Name, String>, Failure> {
    let mut given = BTreeMap::new();
    for (name, value) in settings {
        let value = match value.strip_prefix("file:") {
            Some(path) => {
                let path = std::path::absolute(path).map_err(|source| {
                    Failure::usage(CookError::Read { path: PathBuf::from(path), source })
                })?;
                format!("file:{}", path.display())
            }
            None => value,
        };
        if given.insert(name.clone(), value).is_some() {
            let error = RecipeError::Given {
                recipe: format!("recipe {recipe}"),
                parameter: name,
                reason: "it is given twice: keep one".to_owned(),
            };
            return Err(Failure::usage(error));
        }
    }
    Ok(given)
}

/// Brings the manifests of the recipe's images here: they say how each is started. The chunks stay where they are.
async fn fetch_images(
    grid: &Grid,
    home: &Home,
    recipe: &RecipeRef,
    template: &Template,
) -> Result<(), Failure> {
    let store = home.blobs();
    for image in template.images() {
        let Ok(manifest) = image.parse::<Hash>() else {
            return Err(Failure::refused(CookError::NotPinned {
                recipe: recipe.clone(),
                image: printable(&image),
            }));
        };
        if upload::manifest(&store, manifest).is_ok() {
            continue;
        }
        let gone =
            || CookError::ImageGone { recipe: recipe.clone(), author: recipe.author.clone(), manifest };
        let present = grid.verified().has_blobs(&[manifest]).await.map_err(|e| grid.error(e))?;
        if present.first() != Some(&true) {
            return Err(Failure::not_found(gone()));
        }
        let bytes = grid.verified().get_blob(manifest).await.map_err(|e| grid.error(e))?;
        ImageManifest::check(&bytes, manifest).map_err(|source| {
            Failure::refused(CookError::Image { recipe: recipe.clone(), manifest, source })
        })?;
        store.put(&bytes)?;
    }
    Ok(())
}

/// Where the secret of one deployment is; made the first time.
fn secret(
    home: &Home,
    grid: &Name,
    bot: &Name,
    deployment: &Name,
    parameter: &Name,
) -> Result<PathBuf, Failure> {
    let folder = ["secrets", grid.as_str(), bot.as_str(), deployment.as_str()]
        .iter()
        .fold(home.root().to_owned(), |path, part| path.join(part));
    let path = folder.join(parameter.as_str());
    let path = std::path::absolute(&path).unwrap_or(path);
    if path.exists() {
        return Ok(path);
    }
    let mut bytes = zeroize::Zeroizing::new([0; SECRET_BYTES]);
    getrandom::fill(&mut *bytes).map_err(|e| Failure::from(HomeError::Randomness(e)))?;
    let text = zeroize::Zeroizing::new(hex::encode(*bytes));
    files::aside(&path, text.as_bytes(), true)
        .and_then(|file| file.add(&path))
        .map_err(|source| HomeError::Write { path: path.clone(), source })?;
    Ok(path)
}

async fn bot(grid: &Grid, name: &Name) -> Result<BotId, Failure> {
    let known = grid.bot_named(name).await?;
    known.ok_or_else(|| {
        Failure::not_found(CommandError::NoBot { bot: name.clone(), grid: grid.name().clone() })
    })
}

/// A version of a recipe, proved; the newest one where none is asked for.
async fn find(
    grid: &Grid,
    recipe: &RecipeRef,
    version: Option<u64>,
) -> Result<(Record, RecipeBody), Failure> {
    let id = RecordId::recipe(&bot(grid, &recipe.author).await?, &recipe.name);
    let missing = || {
        let RecipeRef { author, name } = recipe.clone();
        Failure::not_found(CookError::NoRecipe { author, name, grid: grid.name().clone() })
    };
    let newest = grid.record(id).await?.ok_or_else(missing)?;
    let record = match version {
        Some(version) if version != newest.version => {
            let (_, records) = grid.history(id).await?;
            records.into_iter().find(|record| record.version == version).ok_or_else(|| {
                let newest = newest.version;
                Failure::not_found(CookError::NoVersion { recipe: recipe.clone(), version, newest })
            })?
        }
        _ => newest,
    };
    match record.body.clone() {
        Body::Recipe(body) => Ok((record, body)),
        _ => Err(missing()),
    }
}

fn parsed(recipe: &RecipeRef, record: &Record, body: &RecipeBody) -> Result<Template, Failure> {
    let label = format!("recipe {recipe} (version {})", record.version);
    Template::parse(&label, &body.text).map_err(|error| {
        Failure::refused(error).remedy(format!(
            "tell its author '{}'; its text is shown by 'croft recipe show {recipe} --text'",
            recipe.author
        ))
    })
}

/// Mistakes of the deploy file that came out of a recipe have no lines that anybody wrote.
fn in_recipe(label: &str, error: DeployFileError) -> RecipeError {
    match error {
        DeployFileError::Syntax { reason, .. } => {
            RecipeError::Value { recipe: label.to_owned(), place: "the deploy file in it".to_owned(), reason }
        }
        DeployFileError::Value { place, reason, .. } => {
            RecipeError::Value { recipe: label.to_owned(), place, reason }
        }
        other => RecipeError::Value {
            recipe: label.to_owned(),
            place: "the deploy file in it".to_owned(),
            reason: other.to_string(),
        },
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    use std::io::Read as _;
    let failed = |source| Failure::usage(CookError::Read { path: path.to_owned(), source });
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(limits::RECIPE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limits::RECIPE_BYTES {
        let (recipe, bytes) = (path.display().to_string(), bytes.len());
        return Err(Failure::usage(RecipeError::TooLarge { recipe, bytes }));
    }
    String::from_utf8(bytes).map_err(|_| Failure::usage(CookError::NotText { path: path.to_owned() }))
}
