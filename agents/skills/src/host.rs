//! Runs skills: compiles once, and gives each question an instance of its own.
//!
//! ```text
//!   SignedSkill ──load: compile, imports, a trial start, types of each hook──> Skill
//!   Skill + question ──> new store: fuel, memory, stack, copies ──> start, call ──> Answer { result, log, fuel }
//! ```
//! Nothing survives an answer, so the same question always gets the same one. What goes wrong inside is a [`Fault`] and
//! touches nobody else. It must never give a skill anything but its question and the log.

use std::fmt;

use wasmtime::component::{Component, ComponentNamedList, InstancePre, Lift, Linker, Lower, TypedFunc};
use wasmtime::{Config, Engine, OptLevel, ResourceLimiter, Store, StoreContextMut, Trap};

use crate::file::{Hook, Manifest, SignedSkill};
use crate::hooks::{Decision, Demand, Message, Offer, Price, Reaction, Request};
use crate::{limits, shape};

/// The only thing that a skill may import.
const LOG: &str = "log";

/// Why skills can't be run here at all.
#[derive(Debug, thiserror::Error)]
#[error("skills can't be run on this machine: {reason}")]
pub struct HostError {
    reason: String,
}

/// Why a skill is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("skill '{name}' is no component that can be run: {reason}")]
    Component { name: String, reason: String },
    #[error("skill '{name}' asks for {imports}, and skills get nothing but 'log': build it without them")]
    Imports { name: String, imports: String },
    #[error("skill '{name}' lists the hook {hook}, but has no such interface: pack it again")]
    Missing { name: String, hook: Hook },
    #[error(
        "skill '{name}' has another interface than ours for its hook {hook}: build it with the skill.wit of this croft ({reason})"
    )]
    Interface { name: String, hook: Hook, reason: String },
    #[error("skill '{name}' can't even be started")]
    Start { name: String, source: Fault },
}

/// Why there is no answer. Never anybody's problem but the skill's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("it used up its time: {fuel} instructions")]
    Time { fuel: u64 },
    #[error("it wanted {wanted_bytes} bytes of memory, it may have {limit_bytes}")]
    Memory { wanted_bytes: usize, limit_bytes: usize },
    #[error("it used up its stack: {limit_bytes} bytes")]
    Stack { limit_bytes: usize },
    #[error("it handed over more than {limit_bytes} bytes")]
    Copies { limit_bytes: usize },
    #[error("it broke off: {trap}")]
    Trap { trap: String },
    #[error("its answer makes no sense: {reason}")]
    Nonsense { reason: String },
    #[error("it has no hook {hook}: choose another skill")]
    NoHook { hook: Hook },
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    pub result: Result<T, Fault>,
    /// What it logged, cut to [`limits::LOG_LINES`].
    pub log: Vec<String>,
    /// What it used of [`limits::FUEL`].
    pub fuel: u64,
}

/// What is known of an instance while it runs.
#[derive(Default)]
struct Guest {
    log: Vec<String>,
    /// What it logged so far, kept or not, with what each call costs.
    logged_bytes: usize,
    limits: Limits,
}

impl Guest {
    /// The engine bounds each call, and we all of them: a call costs a skill next to no instructions.
    fn write(&mut self, line: &str) -> wasmtime::Result<()> {
        self.logged_bytes = self.logged_bytes.saturating_add(line.len() + limits::CALL_BYTES);
        if self.logged_bytes > limits::COPIED_BYTES {
            return Err(wasmtime::format_err!("it logged too much"));
        }
        if self.log.len() < limits::LOG_LINES {
            self.log.push(cut(line, limits::LOG_CHARS));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Limits {
    /// Of the request that was refused.
    denied_bytes: Option<usize>,
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let fits = desired <= limits::MEMORY_BYTES;
        if !fits {
            self.denied_bytes = Some(desired);
        }
        Ok(fits)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= limits::TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        limits::INSTANCES
    }

    fn tables(&self) -> usize {
        limits::INSTANCES
    }

    /// One, so that its limit is all that there is.
    fn memories(&self) -> usize {
        1
    }
}

/// Where skills are compiled and run.
pub struct Host {
    engine: Engine,
    linker: Linker<Guest>,
}

impl Host {
    /// # Errors
    /// [`HostError`] where machine code can't be made.
    pub fn new() -> Result<Self, HostError> {
        let failed = |error: wasmtime::Error| HostError { reason: reason(&error) };
        let engine = Engine::new(&config()).map_err(failed)?;
        let mut linker = Linker::new(&engine);
        let log = |mut store: StoreContextMut<'_, Guest>, (line,): (String,)| store.data_mut().write(&line);
        linker.root().func_wrap(LOG, log).map_err(failed)?;
        Ok(Self { engine, linker })
    }

    /// Compiles a skill, and tries whether it starts and has what it says.
    ///
    /// # Errors
    /// [`LoadError`] says what its author has to change.
    pub fn load(&self, skill: &SignedSkill) -> Result<Skill, LoadError> {
        let manifest = skill.manifest().clone();
        let name = || manifest.name.to_string();
        let broken = |error: wasmtime::Error| LoadError::Component { name: name(), reason: reason(&error) };
        shape::check(skill.component()).map_err(|reason| LoadError::Component {
            name: name(),
            reason: cut(&reason, limits::REASON_CHARS),
        })?;
        let component = Component::from_binary(&self.engine, skill.component()).map_err(broken)?;
        let ty = component.component_type();
        let strange: Vec<String> = ty
            .imports(&self.engine)
            .map(|(import, _)| import)
            .filter(|import| *import != LOG)
            .take(8)
            .map(|import| format!("'{}'", cut(import, 80)))
            .collect();
        if !strange.is_empty() {
            return Err(LoadError::Imports { name: name(), imports: strange.join(", ") });
        }
        let pre = self.linker.instantiate_pre(&component).map_err(broken)?;
        let loaded = Skill { manifest, pre };
        loaded.try_out()?;
        Ok(loaded)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

/// What decides the same on every machine, and nothing that a skill does not need.
fn config() -> Config {
    let mut config = Config::new();
    config
        .consume_fuel(true)
        .max_wasm_stack(limits::STACK_BYTES)
        .cranelift_opt_level(OptLevel::Speed)
        // One bit pattern for what is not a number, on every processor.
        .cranelift_nan_canonicalization(true)
        .wasm_simd(false)
        .wasm_relaxed_simd(false)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_tail_call(false)
        // Addresses of a skill's code are of no use to anybody.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .concurrency_support(false)
        // Small memories: one per answer, not four GiB of addresses for each.
        .memory_reservation(limits::MEMORY_BYTES as u64)
        .memory_reservation_for_growth(0);
    config
}

/// A skill that can be asked.
#[derive(Clone)]
pub struct Skill {
    manifest: Manifest,
    pre: InstancePre<Guest>,
}

impl fmt::Debug for Skill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Skill({} {})", self.manifest.name, self.manifest.version)
    }
}

impl Skill {
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    #[must_use]
    pub fn has(&self, hook: Hook) -> bool {
        self.manifest.hooks.contains(&hook)
    }

    /// A farmer's price.
    #[must_use]
    pub fn price(&self, demand: Demand) -> Answer<Price> {
        self.ask::<(Demand,), (Price,)>(Hook::Pricing, (demand,)).map(|(answer,)| answer)
    }

    /// What a buyer holds against an offer, in grains.
    #[must_use]
    pub fn surcharge(&self, offer: Offer) -> Answer<i64> {
        self.ask::<(Offer,), (i64,)>(Hook::Scoring, (offer,)).map(|(answer,)| answer)
    }

    /// What an approver says.
    #[must_use]
    pub fn decide(&self, request: Request) -> Answer<Decision> {
        self.ask::<(Request,), (Decision,)>(Hook::Approval, (request,)).map(|(answer,)| answer)
    }

    /// What becomes of a message.
    #[must_use]
    pub fn react(&self, message: Message) -> Answer<Reaction> {
        let mut answer =
            self.ask::<(Message,), (Reaction,)>(Hook::Messages, (message,)).map(|(answer,)| answer);
        if let Ok(Reaction::Mark(word)) = &answer.result
            && word.chars().nth(limits::MARK_CHARS).is_some()
        {
            let reason = format!("a mark has at most {} characters", limits::MARK_CHARS);
            answer.result = Err(Fault::Nonsense { reason });
        }
        answer
    }

    fn ask<P, R>(&self, hook: Hook, question: P) -> Answer<R>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift + 'static,
    {
        if !self.has(hook) {
            return Answer { result: Err(Fault::NoHook { hook }), log: Vec::new(), fuel: 0 };
        }
        let result = self.store().and_then(|mut store| {
            let result = self.function::<P, R>(&mut store, hook);
            let result = result.and_then(|function| function.call(&mut store, question));
            let fuel = limits::FUEL.saturating_sub(store.get_fuel()?);
            let result = result.map_err(|error| fault(&error, store.data()));
            Ok(Answer { result, log: std::mem::take(&mut store.data_mut().log), fuel })
        });
        result.unwrap_or_else(|error| {
            let result = Err(Fault::Trap { trap: reason(&error) });
            Answer { result, log: Vec::new(), fuel: 0 }
        })
    }

    fn store(&self) -> wasmtime::Result<Store<Guest>> {
        let mut store = Store::new(self.pre.engine(), Guest::default());
        store.limiter(|guest| &mut guest.limits);
        store.set_fuel(limits::FUEL)?;
        store.set_hostcall_fuel(limits::COPIED_BYTES);
        Ok(store)
    }

    /// Starts an instance and finds a hook in it.
    fn function<P, R>(&self, store: &mut Store<Guest>, hook: Hook) -> wasmtime::Result<TypedFunc<P, R>>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let instance = self.pre.instantiate(&mut *store)?;
        let missing = || wasmtime::format_err!("it has no {}", hook.interface());
        let interface = instance.get_export_index(&mut *store, None, hook.interface()).ok_or_else(missing)?;
        let function =
            instance.get_export_index(&mut *store, Some(&interface), hook.function()).ok_or_else(missing)?;
        instance.get_typed_func(&mut *store, function)
    }

    /// Whether it starts, and each of its hooks is there with the right types.
    fn try_out(&self) -> Result<(), LoadError> {
        let name = || self.manifest.name.to_string();
        let component = self.pre.component();
        for hook in &self.manifest.hooks {
            let interface = component.get_export_index(None, hook.interface());
            let found =
                interface.and_then(|interface| component.get_export_index(Some(&interface), hook.function()));
            if found.is_none() {
                return Err(LoadError::Missing { name: name(), hook: *hook });
            }
        }
        let broken = |error: wasmtime::Error| LoadError::Component { name: name(), reason: reason(&error) };
        let mut store = self.store().map_err(broken)?;
        self.pre.instantiate(&mut store).map_err(|error| {
            let source = fault(&error, store.data());
            LoadError::Start { name: name(), source }
        })?;
        for hook in &self.manifest.hooks {
            let mut store = self.store().map_err(broken)?;
            let typed = match hook {
                Hook::Pricing => self.function::<(Demand,), (Price,)>(&mut store, *hook).map(drop),
                Hook::Scoring => self.function::<(Offer,), (i64,)>(&mut store, *hook).map(drop),
                Hook::Approval => self.function::<(Request,), (Decision,)>(&mut store, *hook).map(drop),
                Hook::Messages => self.function::<(Message,), (Reaction,)>(&mut store, *hook).map(drop),
            };
            typed.map_err(|error| {
                let reason = reason(&error);
                LoadError::Interface { name: name(), hook: *hook, reason }
            })?;
        }
        Ok(())
    }
}

impl<T> Answer<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { result: self.result.map(change), log: self.log, fuel: self.fuel }
    }
}

/// What went wrong. Memory first: a skill that gets none usually breaks off by itself.
fn fault(error: &wasmtime::Error, guest: &Guest) -> Fault {
    let trap = error.downcast_ref::<Trap>();
    if *trap.unwrap_or(&Trap::UnreachableCodeReached) != Trap::OutOfFuel
        && let Some(wanted_bytes) = guest.limits.denied_bytes
    {
        return Fault::Memory { wanted_bytes, limit_bytes: limits::MEMORY_BYTES };
    }
    if guest.logged_bytes > limits::COPIED_BYTES {
        return Fault::Copies { limit_bytes: limits::COPIED_BYTES };
    }
    match trap {
        Some(Trap::OutOfFuel) => Fault::Time { fuel: limits::FUEL },
        Some(Trap::StackOverflow) => Fault::Stack { limit_bytes: limits::STACK_BYTES },
        Some(trap) => Fault::Trap { trap: trap.to_string() },
        None => Fault::Nonsense { reason: reason(error) },
    }
}

/// An error of the engine on one line, bounded: a skill's author chose parts of it.
fn reason(error: &wasmtime::Error) -> String {
    cut(&format!("{error:#}"), limits::REASON_CHARS)
}

/// At most so many characters, none of which steers a terminal.
fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
