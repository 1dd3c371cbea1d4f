//! Between the bot's memory layout and the types of this crate: the canonical ABI of the component model, in which
//! records, options and variants lie as in C. An instance answers once and is thrown away, so nothing is freed.
//!
//! Safety: the bot calls with addresses of whole, aligned values that it wrote through [`cabi_realloc`], and the component
//! that `croft skill pack` makes is checked for that. Nobody else calls these.

use crate::{
    Approval, Decision, Demand, Message, Messages, Offer, Price, Pricing, Reaction, Request, Resources,
    Scoring, Trust,
};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawText {
    at: *const u8,
    len: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawOption<T: Copy> {
    some: u8,
    value: core::mem::MaybeUninit<T>,
}

#[repr(C)]
pub struct RawDemand {
    now_ms: u64,
    buyer: RawText,
    country: RawText,
    resources: RawResources,
    free: RawResources,
    duration_s: u64,
    list_rate: u64,
    floor_rate: u64,
    policy_rate: u64,
    offered_rate: RawOption<u64>,
    our_rate: RawOption<u64>,
    round: u32,
    rounds: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawResources {
    cpu_millis: u64,
    memory_bytes: u64,
    ssd_bytes: u64,
    hdd_bytes: u64,
    public_addresses: u32,
}

#[repr(C)]
pub struct RawPrice {
    case: u8,
    rate: u64,
}

#[repr(C)]
pub struct RawOffer {
    resources: RawResources,
    duration_s: u64,
    price: u64,
    hold_fee: u64,
    effective: u64,
    farm: RawText,
    farmer: RawText,
    node: RawText,
    country: RawText,
    trust: u8,
    uptime_permille: RawOption<u16>,
}

#[repr(C)]
pub struct RawRequest {
    now_ms: u64,
    name: RawText,
    owner: RawText,
    owner_key: RawText,
    farm: RawText,
    country: RawText,
    trust: u8,
    resources: RawResources,
    price: u64,
    duration_s: u64,
    approved: u64,
    threshold: u32,
}

#[repr(C)]
pub struct RawReaction {
    case: u8,
    mark: RawText,
}

/// A text of the bot's.
pub unsafe fn text(at: *const u8, len: usize) -> String {
    if len == 0 {
        return String::new();
    }
    String::from_utf8_lossy(core::slice::from_raw_parts(at, len)).into_owned()
}

impl RawText {
    unsafe fn read(self) -> String {
        text(self.at, self.len)
    }
}

impl<T: Copy> RawOption<T> {
    unsafe fn read(self) -> Option<T> {
        if self.some == 0 {
            None
        } else {
            Some(self.value.assume_init())
        }
    }
}

impl RawResources {
    fn read(self) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_bytes,
            ssd_bytes: self.ssd_bytes,
            hdd_bytes: self.hdd_bytes,
            public_addresses: self.public_addresses,
        }
    }
}

fn trust(case: u8) -> Trust {
    match case {
        0 => Trust::Plain,
        1 => Trust::Sealed,
        _ => Trust::Attested,
    }
}

fn leak<T>(value: T) -> *const T {
    Box::leak(Box::new(value))
}

pub unsafe fn price<S: Pricing>(question: *const RawDemand) -> *const RawPrice {
    let raw = &*question;
    let demand = Demand {
        now_ms: raw.now_ms,
        buyer: raw.buyer.read(),
        country: raw.country.read(),
        resources: raw.resources.read(),
        free: raw.free.read(),
        duration_s: raw.duration_s,
        list_rate: raw.list_rate,
        floor_rate: raw.floor_rate,
        policy_rate: raw.policy_rate,
        offered_rate: raw.offered_rate.read(),
        our_rate: raw.our_rate.read(),
        round: raw.round,
        rounds: raw.rounds,
    };
    leak(match S::price(&demand) {
        Price::Policy => RawPrice { case: 0, rate: 0 },
        Price::Rate(rate) => RawPrice { case: 1, rate },
        Price::Refuse => RawPrice { case: 2, rate: 0 },
    })
}

pub unsafe fn surcharge<S: Scoring>(question: *const RawOffer) -> i64 {
    let raw = &*question;
    S::surcharge(&Offer {
        resources: raw.resources.read(),
        duration_s: raw.duration_s,
        price: raw.price,
        hold_fee: raw.hold_fee,
        effective: raw.effective,
        farm: raw.farm.read(),
        farmer: raw.farmer.read(),
        node: raw.node.read(),
        country: raw.country.read(),
        trust: trust(raw.trust),
        uptime_permille: raw.uptime_permille.read(),
    })
}

pub unsafe fn decide<S: Approval>(question: *const RawRequest) -> i32 {
    let raw = &*question;
    let request = Request {
        now_ms: raw.now_ms,
        name: raw.name.read(),
        owner: raw.owner.read(),
        owner_key: raw.owner_key.read(),
        farm: raw.farm.read(),
        country: raw.country.read(),
        trust: trust(raw.trust),
        resources: raw.resources.read(),
        price: raw.price,
        duration_s: raw.duration_s,
        approved: raw.approved,
        threshold: raw.threshold,
    };
    match S::decide(&request) {
        Decision::Abstain => 0,
        Decision::Approve => 1,
        Decision::Refuse => 2,
    }
}

pub fn react<S: Messages>(message: &Message) -> *const RawReaction {
    let nothing = RawText { at: core::ptr::null(), len: 0 };
    leak(match S::react(message) {
        Reaction::Show => RawReaction { case: 0, mark: nothing },
        Reaction::Mark(word) => {
            let word: &'static str = Box::leak(word.into_boxed_str());
            RawReaction { case: 1, mark: RawText { at: word.as_ptr(), len: word.len() } }
        }
        Reaction::Hide => RawReaction { case: 2, mark: nothing },
    })
}

/// Where the bot puts what it hands over.
#[cfg(target_arch = "wasm32")]
#[export_name = "cabi_realloc"]
pub unsafe extern "C" fn cabi_realloc(old: *mut u8, old_len: usize, align: usize, len: usize) -> *mut u8 {
    use std::alloc::{alloc, realloc, Layout};
    if len == 0 {
        return align as *mut u8;
    }
    let at = if old_len == 0 {
        alloc(Layout::from_size_align_unchecked(len, align))
    } else {
        realloc(old, Layout::from_size_align_unchecked(old_len, align), len)
    };
    if at.is_null() {
        core::arch::wasm32::unreachable();
    }
    at
}

#[cfg(target_arch = "wasm32")]
pub fn log(line: &str) {
    #[link(wasm_import_module = "$root")]
    extern "C" {
        #[link_name = "log"]
        fn log(at: *const u8, len: usize);
    }
    // SAFETY: the bot reads so many bytes there and keeps no address.
    unsafe { log(line.as_ptr(), line.len()) }
}

#[cfg(not(target_arch = "wasm32"))]
pub fn log(line: &str) {
    println!("{}", line);
}
