//! `croft image`: building and listing.

use std::path::PathBuf;

use croft_protocol::image::{ImageConfig, Verity};
use croft_protocol::{Hash, Name, units};
use serde::Serialize;

use super::Context;
use crate::exit::Failure;
use crate::grid::now_ms;
use crate::home::ImageEntry;
use crate::image::{self, BuildError, LayoutError, LayoutRef};
use crate::terminal::{show_time, table};

#[derive(Serialize)]
struct Built {
    name: Name,
    manifest: Hash,
    source: Hash,
    tag: Option<String>,
    size_bytes: u64,
    stored_bytes: u64,
    content_bytes: u64,
    files: u64,
    chunks: usize,
    verity: Verity,
    config: ImageConfig,
    notes: Vec<String>,
    tool: String,
}

pub(super) fn build(
    c: &mut Context<'_>,
    layout: &LayoutRef,
    name: &Name,
    scratch: Option<PathBuf>,
) -> Result<(), Failure> {
    let scratch = scratch.unwrap_or_else(|| c.home.scratch());
    let store = c.home.blobs();
    let built = image::build(layout, &scratch, &store, &mut *c.progress())?;
    let tool = image::tool_version().unwrap_or_default();
    c.home.name_image(&ImageEntry {
        name: name.clone(),
        manifest: built.hash,
        source: built.manifest.source,
        layout: std::path::absolute(&layout.dir).unwrap_or_else(|_| layout.dir.clone()).display().to_string(),
        tag: built.tag.clone(),
        size_bytes: built.manifest.size_bytes,
        stored_bytes: built.stored_bytes,
        files: built.files,
        built_ms: now_ms(),
        tool: tool.clone(),
    })?;
    for note in &built.notes {
        c.note(note);
    }
    let shown = Built {
        name: name.clone(),
        manifest: built.hash,
        source: built.manifest.source,
        tag: built.tag,
        size_bytes: built.manifest.size_bytes,
        stored_bytes: built.stored_bytes,
        content_bytes: built.content_bytes,
        files: built.files,
        chunks: built.manifest.chunks.len(),
        verity: built.manifest.verity,
        config: built.manifest.config,
        notes: built.notes,
        tool,
    };
    c.terminal.result(&shown, |b| {
        format!(
            "image '{}': {} files with {}, {} to send\n  manifest  {}\n  made from sha256:{}\n",
            b.name,
            b.files,
            units::show_bytes(b.content_bytes),
            units::show_bytes(b.stored_bytes),
            b.manifest,
            b.source
        )
    })
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match &error {
            BuildError::Layout(LayoutError::NotALayout { .. } | LayoutError::NoTag { .. }) => {
                Self::not_found(error)
            }
            BuildError::Layout(LayoutError::ManyImages { .. }) => Self::usage(error),
            _ => Self::failed(error),
        }
    }
}

#[derive(Serialize)]
struct List {
    images: Vec<ImageEntry>,
}

pub(super) fn list(c: &mut Context<'_>) -> Result<(), Failure> {
    let list = List { images: c.home.images()? };
    c.terminal.result(&list, |l| {
        if l.images.is_empty() {
            return "no images yet: make one with 'croft image build OCI_LAYOUT --name NAME'\n".to_owned();
        }
        let row = |i: &ImageEntry| {
            vec![
                i.name.to_string(),
                units::show_bytes(i.size_bytes),
                units::show_bytes(i.stored_bytes),
                i.files.to_string(),
                show_time(i.built_ms),
                i.manifest.short(),
                i.tag.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        };
        let rows: Vec<Vec<String>> = l.images.iter().map(row).collect();
        table(&["NAME", "SIZE", "TO SEND", "FILES", "BUILT", "MANIFEST", "TAG"], &rows)
    })
}
