//! Makes a component of what a compiler put out, for whoever writes a skill.
//!
//! ```text
//!   component ─────────────────────────────────────────────────────┐
//!   core module, with types from wit-bindgen ──────────encode──────┴─> component, hooks by what it exports
//!   core module without, such as croft-skill-guest's ──embed our interface──encode──┘
//! ```
//! It must never put more hooks into a manifest than the component has.

use wasmtime::component::Component;
use wasmtime::{Config, Engine, Module};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::file::Hook;
use crate::{WIT, limits, shape};

/// The section into which binding generators put an interface; their names go on behind it.
const TYPES_SECTION: &[u8] = b"component-type";

/// Why there is no component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("it has {len} bytes, a skill has at most {limit}: build it for size, and strip it")]
    TooLarge { len: usize, limit: usize },
    #[error("it is no WebAssembly that can be used: build it for wasm32-unknown-unknown ({reason})")]
    NotWasm { reason: String },
    #[error("it exports no hook: those are {interfaces}, each with its function, as skill.wit says")]
    NoHook { interfaces: String },
    #[error("no component can be made of it: {reason}")]
    Encode { reason: String },
}

/// The component of a module, and the hooks that it has.
///
/// # Errors
/// [`PackError`] says what its author has to change.
pub fn component(bytes: &[u8]) -> Result<(Vec<u8>, Vec<Hook>), PackError> {
    if bytes.len() > limits::MODULE_BYTES {
        return Err(PackError::TooLarge { len: bytes.len(), limit: limits::MODULE_BYTES });
    }
    let engine = Engine::new(&Config::new()).map_err(|error| not_wasm(&error))?;
    if is_component(bytes) {
        shape::check(bytes).map_err(|reason| PackError::NotWasm { reason: short(&reason) })?;
        let component = Component::from_binary(&engine, bytes).map_err(|error| not_wasm(&error))?;
        let ty = component.component_type();
        let exports: Vec<&str> = ty.exports(&engine).map(|(name, _)| name).collect();
        return Ok((bytes.to_vec(), hooks(|hook| exports.contains(&hook.interface()))?));
    }
    let module = Module::from_binary(&engine, bytes).map_err(|error| not_wasm(&error))?;
    let exports: Vec<&str> = module.exports().map(|export| export.name()).collect();
    let found = hooks(|hook| {
        let name = format!("{}#{}", hook.interface(), hook.function());
        exports.contains(&name.as_str())
    })?;
    let mut bytes = bytes.to_vec();
    if !bytes.windows(TYPES_SECTION.len()).any(|window| window == TYPES_SECTION) {
        embed(&mut bytes, &found).map_err(|error| encode(&error))?;
    }
    let encoder = ComponentEncoder::default().module(&bytes);
    let component = encoder.and_then(|encoder| encoder.validate(true).encode());
    Ok((component.map_err(|error| encode(&error))?, found))
}

/// A component says so in its fifth to eighth byte (component model, binary format: layer 1).
fn is_component(bytes: &[u8]) -> bool {
    bytes.get(..8) == Some(b"\0asm\x0d\0\x01\0")
}

fn hooks(has: impl Fn(Hook) -> bool) -> Result<Vec<Hook>, PackError> {
    let found: Vec<Hook> = Hook::ALL.into_iter().filter(|hook| has(*hook)).collect();
    if found.is_empty() {
        let interfaces = Hook::ALL.map(Hook::interface).join(", ");
        return Err(PackError::NoHook { interfaces });
    }
    Ok(found)
}

/// Puts the interface of exactly these hooks into a module.
fn embed(module: &mut Vec<u8>, hooks: &[Hook]) -> anyhow::Result<()> {
    let exports: Vec<String> = hooks.iter().map(|hook| format!("export {hook};")).collect();
    let text =
        format!("{WIT}\nworld packed {{\nimport log: func(line: string);\n{}\n}}\n", exports.join("\n"));
    let mut resolve = Resolve::default();
    let package = resolve.push_str("skill.wit", &text)?;
    let world = resolve.select_world(&[package], Some("packed"))?;
    embed_component_metadata(module, &resolve, world, StringEncoding::UTF8)
}

fn not_wasm(error: &wasmtime::Error) -> PackError {
    PackError::NotWasm { reason: short(&format!("{error:#}")) }
}

fn encode(error: &anyhow::Error) -> PackError {
    PackError::Encode { reason: short(&format!("{error:#}")) }
}

fn short(text: &str) -> String {
    text.chars().take(limits::REASON_CHARS).collect()
}
