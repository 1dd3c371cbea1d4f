//! Which crate may depend on which: chapter 3 of the design.
//!
//! Edges are normal and build dependencies. Test-only ones are free: a core may be tested with
//! what is built on it, and nothing of that reaches a machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Finding;
use crate::repo;

/// What makes a crate asynchronous. PID 1 must not: its threads and timers would be somebody
/// else's.
const ASYNC_RUNTIMES: [&str; 7] =
    ["tokio", "async-std", "smol", "async-executor", "async-global-executor", "futures-executor", "monoio"];

/// The two PID 1s.
const FIRST_PROCESSES: [&str; 2] = ["os/init", "os/guest"];

/// What Croft is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A crate of ours.
#[derive(Debug, Default, Clone)]
pub(super) struct Member {
    /// `os/init`, relative to the root.
    pub(super) folder: String,
    /// Members that it names as dependencies.
    pub(super) ours: BTreeSet<String>,
    /// Of the two PID 1s: foreign packages that reach it, directly or through others.
    pub(super) foreign: BTreeSet<String>,
}

/// Members by package name.
#[derive(Debug, Default)]
pub(super) struct Graph(pub(super) BTreeMap<String, Member>);

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl Graph {
    /// Asks cargo. Only what Linux on our one architecture uses counts.
    pub(super) fn of_workspace(root: &Path) -> Result<Self> {
        let cargo = || {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.current_dir(root);
            cargo
        };
        let text =
            repo::capture(cargo().args(["metadata", "--format-version", "1", "--filter-platform", TARGET]))?;
        let mut graph = Self::from_metadata(root, &text)?;
        for (name, member) in
            graph.0.iter_mut().filter(|(_, member)| FIRST_PROCESSES.contains(&member.folder.as_str()))
        {
            // Not from the metadata: there a feature that any member of the workspace switches on
            // is on for all. These two are built on their own.
            let tree = [
                "tree",
                "--edges",
                "normal,build",
                "--prefix",
                "none",
                "--target",
                TARGET,
                "--package",
                name,
            ];
            member.foreign = packages_of_tree(&repo::capture(cargo().args(tree))?);
        }
        Ok(graph)
    }

    fn from_metadata(root: &Path, text: &str) -> Result<Self> {
        let metadata: Metadata =
            serde_json::from_str(text).context("can't read what `cargo metadata` printed")?;
        let ours: BTreeMap<&str, &str> = metadata
            .packages
            .iter()
            .filter(|package| metadata.workspace_members.contains(&package.id))
            .map(|package| (package.id.as_str(), package.name.as_str()))
            .collect();
        let mut members = BTreeMap::new();
        for package in metadata.packages.iter().filter(|package| ours.contains_key(package.id.as_str())) {
            let manifest = Path::new(&package.manifest_path);
            let folder = manifest.parent().and_then(|folder| folder.strip_prefix(root).ok());
            let folder =
                folder.with_context(|| format!("{} lies outside the source tree", package.manifest_path))?;
            let nodes = metadata.resolve.nodes.iter().filter(|node| node.id == package.id);
            let counts = |dependency: &&Dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev"))
            };
            let edges = nodes.flat_map(|node| &node.deps).filter(counts);
            let ours =
                edges.filter_map(|edge| ours.get(edge.pkg.as_str())).map(|&name| name.to_owned()).collect();
            let member = Member { folder: folder.display().to_string(), ours, foreign: BTreeSet::new() };
            members.insert(package.name.clone(), member);
        }
        Ok(Self(members))
    }
}

/// The names in what `cargo tree --prefix none` prints: `tokio v1.49.0 (*)`.
fn packages_of_tree(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Every edge that the design doesn't allow.
pub(super) fn check(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, member) in &graph.0 {
        let manifest = format!("{}/Cargo.toml", member.folder);
        if let Some(expected) = expected_name(&member.folder)
            && expected != *name
        {
            findings.push(Finding::new(
                &manifest,
                0,
                format!("folder name = crate name: the package is called {expected}, not {name}"),
            ));
        }
        for target in member.ours.iter().filter_map(|dependency| graph.0.get(dependency)) {
            if let Err(rule) = allowed(&member.folder, &target.folder) {
                let text = format!("{} must not depend on {}: {rule}", member.folder, target.folder);
                findings.push(Finding::new(&manifest, 0, text));
            }
        }
        if FIRST_PROCESSES.contains(&member.folder.as_str()) {
            for runtime in ASYNC_RUNTIMES.iter().filter(|runtime| member.foreign.contains(**runtime)) {
                let text = format!(
                    "{} must not depend on the async runtime {runtime}, not even through others",
                    member.folder
                );
                findings.push(Finding::new(&manifest, 0, text));
            }
        }
    }
    findings
}

/// `croft-` and the folder's name; the folders that hold one tool or one test binary add its parent.
fn expected_name(folder: &str) -> Option<String> {
    match folder {
        "image/builder" => Some("croft-image-builder".to_owned()),
        "qemu/harness" => Some("croft-qemu-harness".to_owned()),
        _ => {
            let (top, name) = folder.split_once('/')?;
            ["os", "agents", "scripts", "image"].contains(&top).then(|| format!("croft-{name}"))
        }
    }
}

/// The rule that an edge breaks.
fn allowed(from: &str, to: &str) -> Result<(), &'static str> {
    let one_of = |list: &[&str]| list.contains(&to);
    let top = from.split('/').next().unwrap_or_default();
    if ["os", "agents"].contains(&top)
        && ["qemu/", "tests/", "scripts/"].iter().any(|chores| to.starts_with(chores))
    {
        return Err("what runs in the field knows nothing of chores and tests");
    }
    match from {
        "agents/protocol" => Err("protocol depends on nothing of ours"),
        "agents/light" | "agents/market" | "agents/attest" if !one_of(&["agents/protocol"]) => {
            Err("light, market and attest depend on protocol only")
        }
        // Foreign code runs there: nothing that it could hold on to may be near.
        "agents/skills" if !one_of(&["agents/protocol"]) => Err("skills depend on protocol only"),
        _ if to == "agents/skills" && !["agents/bot", "tests/fuzz"].contains(&from) => {
            Err("only a person's bot runs skills")
        }
        // Trust classes are set inside the state transition, so quotes are weighed there: attest has no I/O either.
        "agents/ledger" if !one_of(&["agents/protocol", "agents/light", "agents/attest"]) => {
            Err("ledger depends on protocol, light and attest only")
        }
        "agents/transport" if !one_of(&["agents/protocol", "agents/light"]) => {
            Err("transport depends on protocol and light only")
        }
        "agents/node" if one_of(&["agents/ledger", "agents/replica", "agents/market", "agents/bot"]) => {
            Err("the node depends on the os libraries, transport and light")
        }
        "image/media" if to != "agents/protocol" => Err("media depends on protocol only"),
        // The TPM's formats have one home, without I/O: there they are verified, here they are spoken.
        "os/tpm" if one_of(&["agents/attest"]) => Ok(()),
        _ if top == "os" && !to.starts_with("os/") && to != "agents/protocol" => {
            Err("crates under os/ depend on each other and on protocol only")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(folder, folders it depends on, foreign packages that reach it)`.
    fn graph(members: &[(&str, &[&str], &[&str])]) -> Graph {
        let name = |folder: &str| expected_name(folder).unwrap_or_else(|| folder.replace('/', "-"));
        let member = |(folder, ours, foreign): &(&str, &[&str], &[&str])| {
            let member = Member {
                folder: (*folder).to_owned(),
                ours: ours.iter().map(|folder| name(folder)).collect(),
                foreign: foreign.iter().map(|&package| package.to_owned()).collect(),
            };
            (name(folder), member)
        };
        Graph(members.iter().map(member).collect())
    }

    fn texts(graph: &Graph) -> Vec<String> {
        check(graph).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_designs_own_edges_are_allowed() {
        let graph = graph(&[
            ("agents/protocol", &[], &["borsh"]),
            ("agents/light", &["agents/protocol"], &[]),
            ("agents/ledger", &["agents/protocol", "agents/light", "agents/attest"], &[]),
            ("agents/market", &["agents/protocol"], &[]),
            ("agents/attest", &["agents/protocol"], &[]),
            ("os/tpm", &["agents/attest", "agents/protocol"], &[]),
            ("os/identity", &["os/tpm", "agents/protocol"], &[]),
            ("agents/transport", &["agents/protocol", "agents/light"], &["tokio"]),
            ("os/init", &[], &["rustix"]),
            ("os/guest", &["agents/protocol"], &["rustix"]),
            ("os/microvm", &["os/guest", "agents/protocol"], &["tokio"]),
            (
                "agents/node",
                &["os/microvm", "os/init", "agents/transport", "agents/light", "agents/protocol"],
                &["tokio"],
            ),
            (
                "agents/bot",
                &["agents/market", "agents/replica", "agents/ledger", "agents/skills", "image/builder"],
                &["tokio"],
            ),
            ("agents/replica", &["agents/ledger", "agents/transport"], &["tokio"]),
            ("agents/skills", &["agents/protocol"], &[]),
            ("image/builder", &[], &[]),
            ("image/media", &["agents/protocol"], &[]),
            ("tests/it", &["agents/bot", "agents/node", "agents/ledger", "qemu/harness"], &["tokio"]),
            ("qemu/harness", &[], &[]),
        ]);
        assert_eq!(texts(&graph), [""; 0]);
    }

    #[test]
    fn each_forbidden_edge_is_named_with_its_rule() {
        let forbidden = [
            ("agents/protocol", "agents/light", "protocol depends on nothing of ours"),
            ("agents/light", "agents/transport", "light, market and attest depend on protocol only"),
            ("agents/market", "agents/ledger", "light, market and attest depend on protocol only"),
            ("agents/attest", "agents/light", "light, market and attest depend on protocol only"),
            ("os/identity", "agents/attest", "crates under os/ depend on each other and on protocol only"),
            ("agents/ledger", "agents/market", "ledger depends on protocol, light and attest only"),
            ("agents/node", "agents/ledger", "the node depends on the os libraries, transport and light"),
            ("agents/node", "agents/replica", "the node depends on the os libraries, transport and light"),
            ("agents/node", "agents/market", "the node depends on the os libraries, transport and light"),
            ("agents/node", "agents/bot", "the node depends on the os libraries, transport and light"),
            ("os/network", "agents/transport", "crates under os/ depend on each other and on protocol only"),
            ("os/storage", "image/builder", "crates under os/ depend on each other and on protocol only"),
            ("image/media", "agents/transport", "media depends on protocol only"),
            ("agents/skills", "agents/transport", "skills depend on protocol only"),
            ("agents/node", "agents/skills", "only a person's bot runs skills"),
            ("agents/bot", "qemu/harness", "what runs in the field knows nothing of chores and tests"),
        ];
        for (from, to, rule) in forbidden {
            let texts = texts(&graph(&[(from, &[to], &[]), (to, &[], &[])]));
            assert_eq!(texts, [format!("{from}/Cargo.toml: {from} must not depend on {to}: {rule}")]);
        }
    }

    #[test]
    fn an_async_runtime_in_pid_1_is_found_even_behind_others() {
        for folder in ["os/init", "os/guest"] {
            let texts = texts(&graph(&[(folder, &[], &["rustix", "tokio"])]));
            assert_eq!(texts.len(), 1);
            assert!(texts[0].contains("async runtime tokio"), "{texts:?}");
        }
        assert_eq!(texts(&graph(&[("os/microvm", &[], &["tokio"])])), [""; 0]);
    }

    #[test]
    fn a_package_is_called_like_its_folder() {
        let mut graph = graph(&[("os/init", &[], &[])]);
        let member = graph.0.remove("croft-init").unwrap();
        graph.0.insert("croft-pid1".to_owned(), member);
        assert_eq!(
            texts(&graph),
            [
                "os/init/Cargo.toml: folder name = crate name: the package is called croft-init, not croft-pid1"
            ]
        );
    }

    #[test]
    fn metadata_gives_the_edges_without_those_of_tests() {
        let text = r#"{
            "packages": [
                {"id": "a", "name": "croft-light", "manifest_path": "/r/agents/light/Cargo.toml"},
                {"id": "b", "name": "croft-ledger", "manifest_path": "/r/agents/ledger/Cargo.toml"},
                {"id": "y", "name": "tokio", "manifest_path": "/reg/tokio/Cargo.toml"}],
            "workspace_members": ["a", "b"],
            "resolve": {"nodes": [
                {"id": "a", "deps": [{"pkg": "b", "dep_kinds": [{"kind": "dev"}]},
                                     {"pkg": "y", "dep_kinds": [{"kind": "dev"}, {"kind": null}]}]},
                {"id": "b", "deps": [{"pkg": "a", "dep_kinds": [{"kind": "build"}]}]},
                {"id": "y", "deps": []}]}}"#;
        let graph = Graph::from_metadata(Path::new("/r"), text).unwrap();
        assert_eq!(graph.0.keys().collect::<Vec<_>>(), ["croft-ledger", "croft-light"]);
        assert_eq!(graph.0["croft-light"].folder, "agents/light");
        assert!(graph.0["croft-light"].ours.is_empty());
        assert_eq!(graph.0["croft-ledger"].ours.iter().collect::<Vec<_>>(), ["croft-light"]);
    }

    #[test]
    fn the_tree_of_a_package_names_everything_that_reaches_it() {
        let names = packages_of_tree("croft-init v0.1.0 (/r/os/init)\nrustix v1.1.0\ntokio v1.49.0 (*)\n\n");
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), ["croft-init", "rustix", "tokio"]);
    }
}
