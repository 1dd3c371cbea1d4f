//! Recipes: a deploy file with parameters, which an expert wrote and others fill in.
//!
//! ```text
//!   text ──parse──> Template ──render(name, values)──> text of a deploy file, without parameters ──DeployFile::parse
//! ```
//! Values are put into the parsed tree, never into the text: whatever a value holds, it stays one value. A recipe is a
//! stranger's: it must never name a file or a variable of whoever deploys it, so its secrets come from secret parameters
//! alone, and only from what was given for them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use croft_protocol::{Hash, Name, limits, units};
use toml::{Table, Value};
use toml_edit::DocumentMut;

mod parameter;
#[cfg(test)]
mod tests;

pub use parameter::{Kind, Parameter};

/// The format, for people.
pub const FORMAT: &str = r#"THE RECIPE FILE (recipe.toml)

  A deploy file ('croft deploy --help') without its name, and with:

  [recipe]
  name = "shop"                    # yours alone; others say OWNER/shop
  title = "A shop with its database"
  description = "..."              # default: nothing; for 'croft recipe show'

  [parameter.greeting]             # up to 64
  type = "text"                    # text, integer, port, size, duration, choice, secret
  description = "Shown on the first page"
  default = "hello"                # without a default it must be given
  max_length = 64                  # of a text; default 256
                                   # integer, size, duration: min, max; choice: choices = ["a", "b"]
  [parameter.password]
  type = "secret"                  # only under secrets; given as env:VARIABLE or file:PATH
  default = "generate"             # made once for each deployment, kept in the deployer's home

  Texts take ${greeting}; a text that is nothing else takes an integer or a port as a number.
  $$ stands for $. Images are named from 'croft image list' or by hash, without parameters;
  publishing puts hashes in their place.

Example:
  croft recipe publish recipe.toml --bot eve

JSON: {recipe, author, name, version, record, title, images: [{name, manifest}], height}"#;

/// Parameters in one recipe.
const PARAMETERS: usize = 64;
/// A recipe's description.
const DESCRIPTION_BYTES: usize = 4096;

/// Why a text is no recipe, or can't be deployed with these values. `recipe` says which.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("{recipe}, line {line}: {reason}")]
    Syntax { recipe: String, line: usize, reason: String },
    #[error("{recipe}, {place}: {reason}")]
    Value { recipe: String, place: String, reason: String },
    #[error("{recipe} has {bytes} bytes; a recipe has at most {}", limits::RECIPE_BYTES)]
    TooLarge { recipe: String, bytes: usize },
    #[error("{recipe} has no parameter '{given}'; it has {known}")]
    Unknown { recipe: String, given: Name, known: String },
    #[error("{recipe} needs a value for {}: give it with {}", list(missing), flags(missing))]
    Missing { recipe: String, missing: Vec<Name> },
    #[error("{recipe}, parameter '{parameter}': {reason}")]
    Given { recipe: String, parameter: Name, reason: String },
}

fn list(names: &[Name]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
}

fn flags(names: &[Name]) -> String {
    names.iter().map(|name| format!("--set {name}=...")).collect::<Vec<_>>().join(" ")
}

/// Where the value of a secret is, never what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretValue {
    Env(String),
    File(PathBuf),
}

/// What fills the places of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filling {
    Text(String),
    Number(i64),
    Secret(SecretValue),
}

/// A recipe that was read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    pub name: Name,
    pub title: String,
    pub description: String,
    pub parameters: BTreeMap<Name, Parameter>,
    /// For messages.
    recipe: String,
    /// The deploy file with places for parameters in it.
    table: Table,
}

impl Template {
    /// Reads a recipe; `recipe` is what messages call it. The places of parameters are checked here, what comes out with
    /// values in them by [`Self::render`] and [`crate::deploy_file::DeployFile::parse`].
    pub fn parse(recipe: &str, text: &str) -> Result<Self, RecipeError> {
        if text.len() > limits::RECIPE_BYTES {
            return Err(RecipeError::TooLarge { recipe: recipe.to_owned(), bytes: text.len() });
        }
        let mut table: Table = toml::from_str(text).map_err(|e| {
            let offset = e.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..offset].split(|b| *b == b'\n').count();
            let reason = e.message().trim().replace('`', "'").replace('\n', "; ");
            RecipeError::Syntax { recipe: recipe.to_owned(), line, reason }
        })?;
        let wrong = |place: &str, reason: String| RecipeError::Value {
            recipe: recipe.to_owned(),
            place: place.to_owned(),
            reason,
        };
        let about: About = table
            .remove("recipe")
            .ok_or_else(|| wrong("[recipe]", "it is missing: give name and title".to_owned()))?
            .try_into()
            .map_err(|e: toml::de::Error| wrong("[recipe]", said(&e)))?;
        if table.contains_key("name") {
            let reason = "whoever deploys it chooses the name: remove it".to_owned();
            return Err(wrong("name", reason));
        }
        check_title(&about.title).map_err(|reason| wrong("[recipe]", reason))?;
        if about.description.len() > DESCRIPTION_BYTES {
            let reason = format!("description: at most {DESCRIPTION_BYTES} bytes are allowed");
            return Err(wrong("[recipe]", reason));
        }
        let mut parameters = BTreeMap::new();
        let raw = table.remove("parameter").unwrap_or_else(|| Value::Table(Table::new()));
        let Value::Table(raw) = raw else {
            return Err(wrong("[parameter]", "each parameter is a table: [parameter.NAME]".to_owned()));
        };
        if raw.len() > PARAMETERS {
            return Err(wrong(
                "[parameter]",
                format!("{} parameters; at most {PARAMETERS} are allowed", raw.len()),
            ));
        }
        for (key, value) in raw {
            let place = format!("[parameter.{}]", crate::terminal::printable(&key));
            let name = Name::new(&key).map_err(|e| wrong(&place, e.to_string()))?;
            let parameter = Parameter::parse(value).map_err(|reason| wrong(&place, reason))?;
            parameters.insert(name, parameter);
        }
        let template = Self {
            name: about.name,
            title: about.title,
            description: about.description,
            parameters,
            recipe: recipe.to_owned(),
            table,
        };
        template.check_places()?;
        Ok(template)
    }

    /// Every place names a parameter, and every parameter has a place.
    fn check_places(&self) -> Result<(), RecipeError> {
        let mut used = BTreeSet::new();
        // What fills the places does not matter here: only where they are.
        let fillings = self
            .parameters
            .iter()
            .map(|(name, parameter)| {
                let filling = match parameter.kind {
                    Kind::Secret => Filling::Secret(SecretValue::Env("X".to_owned())),
                    _ => Filling::Text("x".to_owned()),
                };
                (name.clone(), filling)
            })
            .collect();
        self.filled(&fillings, &mut used)?;
        match self.parameters.keys().find(|name| !used.contains(*name)) {
            None => Ok(()),
            Some(idle) => {
                let reason = format!("nothing takes its value: write ${{{idle}}} somewhere, or remove it");
                Err(self.wrong(&format!("[parameter.{idle}]"), reason))
            }
        }
    }

    /// The images that it names, each once.
    pub fn images(&self) -> Vec<String> {
        let mut images: Vec<String> = self
            .vms()
            .filter_map(|(_, vm)| vm.get("image").and_then(Value::as_str).map(str::to_owned))
            .collect();
        images.sort_unstable();
        images.dedup();
        images
    }

    fn vms(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.table.get("vm").and_then(Value::as_table).into_iter().flatten()
    }

    /// The text of a deploy file: `name` is the deployment's, `given` what was given for parameters, `generated` where
    /// the secrets are that were made for this deployment.
    pub fn render(
        &self,
        name: &Name,
        given: &BTreeMap<Name, String>,
        generated: &BTreeMap<Name, PathBuf>,
    ) -> Result<String, RecipeError> {
        if let Some(unknown) = given.keys().find(|given| !self.parameters.contains_key(*given)) {
            let known: Vec<Name> = self.parameters.keys().cloned().collect();
            let known = if known.is_empty() { "none".to_owned() } else { list(&known) };
            return Err(RecipeError::Unknown { recipe: self.recipe.clone(), given: unknown.clone(), known });
        }
        let mut fillings = BTreeMap::new();
        let mut missing = Vec::new();
        for (name, parameter) in &self.parameters {
            let value = given.get(name).or(parameter.default.as_ref());
            let filling = match (value, generated.get(name)) {
                (None, _) => {
                    missing.push(name.clone());
                    continue;
                }
                (Some(value), Some(path)) if parameter.is_generated(value) => {
                    Filling::Secret(SecretValue::File(path.clone()))
                }
                (Some(value), _) => parameter.filling(value).map_err(|reason| RecipeError::Given {
                    recipe: self.recipe.clone(),
                    parameter: name.clone(),
                    reason,
                })?,
            };
            fillings.insert(name.clone(), filling);
        }
        if !missing.is_empty() {
            return Err(RecipeError::Missing { recipe: self.recipe.clone(), missing });
        }
        let mut filled = self.filled(&fillings, &mut BTreeSet::new())?;
        filled.insert("name".to_owned(), Value::String(name.to_string()));
        toml::to_string(&filled).map_err(|e| self.wrong("the whole", e.to_string()))
    }

    /// Parameters whose secrets must be made for a deployment with these values.
    pub fn to_generate(&self, given: &BTreeMap<Name, String>) -> Vec<Name> {
        self.parameters
            .iter()
            .filter(|(name, parameter)| {
                given
                    .get(*name)
                    .or(parameter.default.as_ref())
                    .is_some_and(|value| parameter.is_generated(value))
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Whether it can be deployed at all: with its defaults, and something allowed where it has none.
    pub fn sample(&self) -> Result<String, RecipeError> {
        let samples = self.parameters.iter().map(|(name, p)| (name.clone(), p.sample())).collect();
        self.render(&self.name, &samples, &BTreeMap::new())
    }

    fn filled(
        &self,
        fillings: &BTreeMap<Name, Filling>,
        used: &mut BTreeSet<Name>,
    ) -> Result<Table, RecipeError> {
        let mut filled = Table::new();
        for (key, value) in &self.table {
            let mut fill = Fill { template: self, fillings, used: &mut *used };
            filled.insert(key.clone(), fill.value(&[key.as_str()], value)?);
        }
        Ok(filled)
    }

    fn wrong(&self, place: &str, reason: impl Into<String>) -> RecipeError {
        RecipeError::Value { recipe: self.recipe.clone(), place: place.to_owned(), reason: reason.into() }
    }
}

/// The recipe's text with the hashes of manifests where it names images. Comments and order stay.
pub fn with_hashes(text: &str, hashes: &BTreeMap<String, Hash>) -> Result<String, toml_edit::TomlError> {
    let mut document: DocumentMut = text.parse()?;
    if let Some(vms) = document.get_mut("vm").and_then(toml_edit::Item::as_table_like_mut) {
        for (_, vm) in vms.iter_mut() {
            let Some(image) = vm.as_table_like_mut().and_then(|vm| vm.get_mut("image")) else { continue };
            let hash = image.as_str().and_then(|named| hashes.get(named));
            if let Some(hash) = hash {
                *image = toml_edit::value(hash.to_string());
            }
        }
    }
    Ok(document.to_string())
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    name: Name,
    title: String,
    #[serde(default)]
    description: String,
}

fn said(error: &toml::de::Error) -> String {
    error.message().trim().replace('`', "'").replace('\n', "; ")
}

fn check_title(title: &str) -> Result<(), String> {
    let limit = limits::RECIPE_TITLE_BYTES;
    if title.is_empty() || title.len() > limit {
        return Err(format!("title: 1 to {limit} bytes are allowed, not {}", title.len()));
    }
    if title.chars().any(char::is_control) {
        return Err("title: one line without control characters".to_owned());
    }
    Ok(())
}

/// Puts values into one tree.
struct Fill<'a> {
    template: &'a Template,
    fillings: &'a BTreeMap<Name, Filling>,
    used: &'a mut BTreeSet<Name>,
}

/// A piece of a text with places in it.
enum Piece {
    Text(String),
    Place(String),
}

impl<'a> Fill<'a> {
    fn value(&mut self, path: &[&str], value: &Value) -> Result<Value, RecipeError> {
        Ok(match value {
            Value::String(text) => self.text(path, text)?,
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| self.value(path, item)).collect::<Result<_, _>>()?)
            }
            Value::Table(table) => {
                let mut filled = Table::new();
                for (key, value) in table {
                    if key.contains("${") {
                        return Err(
                            self.wrong(path, format!("'{key}': names can't be parameters, only values"))
                        );
                    }
                    let path: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
                    filled.insert(key.clone(), self.value(&path, value)?);
                }
                Value::Table(filled)
            }
            // Whatever file or variable a recipe names here would be its deployer's.
            other if is_secret(path) => return Err(self.wrong(path, secret_rule(&other.to_string()))),
            other => other.clone(),
        })
    }

    fn text(&mut self, path: &[&str], text: &str) -> Result<Value, RecipeError> {
        let pieces = pieces(text).map_err(|reason| self.wrong(path, reason))?;
        if is_secret(path) {
            let ([Piece::Place(name)], 4) = (pieces.as_slice(), path.len()) else {
                return Err(self.wrong(path, secret_rule(text)));
            };
            let Filling::Secret(secret) = self.filling(path, name)? else {
                return Err(self.wrong(path, secret_rule(text)));
            };
            let (key, value) = match secret {
                SecretValue::Env(variable) => ("env", variable.clone()),
                SecretValue::File(file) => match file.to_str() {
                    Some(file) => ("file", file.to_owned()),
                    None => return Err(self.wrong(path, format!("{} is no text", file.display()))),
                },
            };
            return Ok(Value::Table(Table::from_iter([(key.to_owned(), Value::String(value))])));
        }
        let has_place = pieces.iter().any(|piece| matches!(piece, Piece::Place(_)));
        if has_place && matches!(path, ["vm", _, "image"]) {
            return Err(self.wrong(path, "an image can't be a parameter: nobody could fetch it beforehand"));
        }
        if !is_always_text(path)
            && let [Piece::Place(name)] = pieces.as_slice()
            && let Filling::Number(number) = self.filling(path, name)?
        {
            return Ok(Value::Integer(*number));
        }
        let mut filled = String::new();
        for piece in &pieces {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Place(name) => match self.filling(path, name)? {
                    Filling::Text(text) => filled.push_str(text),
                    Filling::Number(number) => filled.push_str(&number.to_string()),
                    Filling::Secret(_) => {
                        let reason = format!(
                            "'{name}' is a secret: only secrets = {{ KEY = \"${{{name}}}\" }} takes it"
                        );
                        return Err(self.wrong(path, reason));
                    }
                },
            }
        }
        Ok(Value::String(filled))
    }

    fn filling(&mut self, path: &[&str], name: &str) -> Result<&'a Filling, RecipeError> {
        let unknown = || format!("there is no parameter '{}'", crate::terminal::printable(name));
        let Ok(name) = Name::new(name) else { return Err(self.wrong(path, unknown())) };
        match self.fillings.get(&name) {
            None => Err(self.wrong(path, unknown())),
            Some(filling) => {
                self.used.insert(name);
                Ok(filling)
            }
        }
    }

    fn wrong(&self, path: &[&str], reason: impl Into<String>) -> RecipeError {
        self.template.wrong(&crate::terminal::printable(&path.join(".")), reason)
    }
}

/// Where programs are given words, a number is one.
fn is_always_text(path: &[&str]) -> bool {
    matches!(path, ["vm", _, "env" | "command", ..] | ["vm", _, "health", "exec", ..])
}

fn is_secret(path: &[&str]) -> bool {
    matches!(path, ["vm", _, "secrets", ..])
}

fn secret_rule(got: &str) -> String {
    let got = crate::terminal::printable(got);
    format!("a secret is \"${{NAME}}\" of a parameter of type secret, not {got}")
}

/// Takes a text apart at its places.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
    while let Some(at) = rest.find('$') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            plain.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("${") {
            let end =
                after.find('}').ok_or_else(|| "a '${' has no '}' after it; $$ stands for $".to_owned())?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Place(after[..end].to_owned()));
            rest = &after[end + 1..];
        } else {
            plain.push('$');
            rest = &rest[1..];
        }
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// Bytes or seconds with their bounds, as people write them.
fn bounded(
    what: &str,
    value: u64,
    min: Option<u64>,
    max: Option<u64>,
    show: fn(u64) -> String,
) -> Result<(), String> {
    if let Some(min) = min.filter(|min| value < *min) {
        return Err(format!("{what} {} is too small: at least {} is allowed", show(value), show(min)));
    }
    if let Some(max) = max.filter(|max| value > *max) {
        return Err(format!("{what} {} is too large: at most {} is allowed", show(value), show(max)));
    }
    Ok(())
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).map_err(|e| e.to_string())
}

fn parse_seconds(text: &str) -> Result<u64, String> {
    units::parse_seconds(text).map_err(|e| e.to_string())
}
