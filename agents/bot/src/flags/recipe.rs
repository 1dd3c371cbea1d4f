//! `croft recipe` as people type it.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use croft_protocol::Name;

#[derive(Debug, Subcommand)]
pub enum RecipeCommand {
    /// Publish a recipe of the acting bot, or a new version of it
    #[command(long_about = "Publish a recipe of the acting bot, or a new version of it

Its images go to the replicas; their names are replaced by hashes, so that whoever deploys it gets exactly them.", after_help = "See 'croft recipe publish --help' for the format of the recipe file.",
        after_long_help = crate::recipe::FORMAT)]
    Publish {
        /// The recipe file
        #[arg(value_name = "FILE", default_value = "recipe.toml")]
        file: PathBuf,
    },
    /// Take a recipe of the acting bot back: nobody should deploy it any more
    #[command(after_help = "\
Example:
  croft recipe withdraw shop --reason 'its database loses writes' --bot eve

Contracts that run it go on. Its versions stay on the ledger.
JSON: {recipe, author, name, version, reason, height}")]
    Withdraw {
        /// Its name
        name: Name,
        /// Why; everybody can read it
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Recipes that are offered
    #[command(after_help = "\
Example:
  croft recipe list --author eve

A replica finds them, and may hide some; each that it shows is proved.
JSON: {recipes: [{recipe, author, name, version, title, time_ms}]}")]
    List {
        /// Only this bot's
        #[arg(long, value_name = "BOT")]
        author: Option<Name>,
    },
    /// A recipe: what it is, its parameters, its text
    #[command(after_help = "\
Example:
  croft recipe show eve/shop
  croft recipe show eve/shop --text

JSON: {recipe, author, author_id, name, version, record, title, description, withdrawn?, time_ms,
       parameters: [{name, type, description, default, ...}], text}")]
    Show {
        /// Its author and its name
        #[arg(value_name = "AUTHOR/NAME")]
        recipe: RecipeRef,
        /// This version [default: the newest]
        #[arg(long, value_name = "N")]
        version: Option<u64>,
        /// Only its text
        #[arg(long)]
        text: bool,
    },
    /// Deploy a recipe with values for its parameters
    #[command(after_help = "\
Example:
  croft recipe deploy eve/shop --name shop --set greeting=hello --set published=18080
  croft recipe deploy eve/shop --set password=env:SHOP_PASSWORD --dry-run

Secrets that a recipe lets be generated are made once for each deployment and kept in the home, under secrets/.
JSON: as 'croft deploy'.")]
    Deploy(RecipeDeployFlags),
}

#[derive(Debug, Args)]
pub struct RecipeDeployFlags {
    /// Its author and its name
    #[arg(value_name = "AUTHOR/NAME")]
    pub recipe: RecipeRef,
    /// What the deployment is called [default: the recipe's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// A parameter's value; a secret's is env:VARIABLE, file:PATH or generate
    #[arg(long = "set", value_name = "PARAMETER=VALUE", value_parser = setting)]
    pub settings: Vec<(Name, String)>,
    /// This version of the recipe [default: the newest]
    #[arg(long, value_name = "N")]
    pub version: Option<u64>,
    /// Where it may run, instead of where the recipe says
    #[arg(long, value_name = "COUNTRY", value_delimiter = ',')]
    pub country: Vec<String>,
    /// For how long, instead of what the recipe says
    #[arg(long, value_name = "TIME", value_parser = super::parse_seconds)]
    pub duration: Option<u64>,
    /// At most this many grains for the whole duration, instead of what the recipe says
    #[arg(long, value_name = "GRAINS")]
    pub max_price: Option<u64>,
    /// Show price and choice, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Return as soon as the contract is on the ledger
    #[arg(long)]
    pub detach: bool,
    /// How long to wait until it runs
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = super::parse_seconds, conflicts_with = "detach")]
    pub timeout: u64,
    /// Say why this node was taken, and why each other one was not
    #[arg(long)]
    pub explain: bool,
    /// Don't ask: what is within the limits is bought
    #[arg(long, short)]
    pub yes: bool,
}

/// A recipe by its author's name and its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeRef {
    pub author: Name,
    pub name: Name,
}

impl std::fmt::Display for RecipeRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.author, self.name)
    }
}

impl FromStr for RecipeRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (author, name) = text
            .split_once('/')
            .ok_or("write its author and its name, such as eve/shop; 'croft recipe list' has them")?;
        let part = |text: &str| Name::new(text).map_err(|e| e.to_string());
        Ok(Self { author: part(author)?, name: part(name)? })
    }
}

fn setting(text: &str) -> Result<(Name, String), String> {
    let (name, value) = text.split_once('=').ok_or("write PARAMETER=VALUE, such as greeting=hello")?;
    Ok((Name::new(name).map_err(|e| e.to_string())?, value.to_owned()))
}
