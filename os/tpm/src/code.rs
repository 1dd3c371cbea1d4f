//! Numbers of commands, handles and response codes (TPM 2.0 Library, part 2, 6.5, 6.6 and 7.4).

/// A command, with its name for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32, pub &'static str);

impl Code {
    pub const NV_UNDEFINE_SPACE: Self = Self(0x122, "TPM2_NV_UndefineSpace");
    pub const NV_DEFINE_SPACE: Self = Self(0x12a, "TPM2_NV_DefineSpace");
    pub const CREATE_PRIMARY: Self = Self(0x131, "TPM2_CreatePrimary");
    pub const NV_INCREMENT: Self = Self(0x134, "TPM2_NV_Increment");
    pub const NV_WRITE: Self = Self(0x137, "TPM2_NV_Write");
    pub const NV_WRITE_LOCK: Self = Self(0x138, "TPM2_NV_WriteLock");
    pub const STARTUP: Self = Self(0x144, "TPM2_Startup");
    pub const ACTIVATE_CREDENTIAL: Self = Self(0x147, "TPM2_ActivateCredential");
    pub const NV_READ: Self = Self(0x14e, "TPM2_NV_Read");
    pub const POLICY_SECRET: Self = Self(0x151, "TPM2_PolicySecret");
    pub const CREATE: Self = Self(0x153, "TPM2_Create");
    pub const LOAD: Self = Self(0x157, "TPM2_Load");
    pub const QUOTE: Self = Self(0x158, "TPM2_Quote");
    pub const UNSEAL: Self = Self(0x15e, "TPM2_Unseal");
    pub const FLUSH_CONTEXT: Self = Self(0x165, "TPM2_FlushContext");
    pub const NV_READ_PUBLIC: Self = Self(0x169, "TPM2_NV_ReadPublic");
    pub const START_AUTH_SESSION: Self = Self(0x176, "TPM2_StartAuthSession");
    pub const GET_CAPABILITY: Self = Self(0x17a, "TPM2_GetCapability");
    pub const PCR_READ: Self = Self(0x17e, "TPM2_PCR_Read");
    pub const POLICY_PCR: Self = Self(0x17f, "TPM2_PolicyPCR");
    pub const PCR_EXTEND: Self = Self(0x182, "TPM2_PCR_Extend");
}

pub const HIERARCHY_OWNER: u32 = 0x4000_0001;
pub const HIERARCHY_NULL: u32 = 0x4000_0007;
pub const HIERARCHY_ENDORSEMENT: u32 = 0x4000_000b;

/// What a response code means for whoever has to do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Send the same again: RETRY, YIELDED, TESTING, NV_RATE, NV_UNAVAILABLE.
    Again,
    /// Too many wrong passwords of somebody.
    Lockout,
    /// A password that we don't know is set.
    Auth,
    /// The registers are not those of the policy.
    Policy,
    /// Nothing has this handle.
    NoSuchHandle,
    /// Made by another TPM, or before this one was cleared, or altered.
    Integrity,
    NvLocked,
    NvUnwritten,
    /// No room for keys, sessions or indices.
    Memory,
    Other,
}

/// Takes a response code apart. Codes with bit 7 name a parameter, handle or session in other bits.
#[must_use]
pub fn meaning(code: u32) -> Meaning {
    if code & 0x80 != 0 {
        return match code & 0xbf {
            0x8e | 0xa2 => Meaning::Auth,
            0x9d => Meaning::Policy,
            0x8b => Meaning::NoSuchHandle,
            0x9f => Meaning::Integrity,
            _ => Meaning::Other,
        };
    }
    match code {
        0x922 | 0x908 | 0x90a | 0x920 | 0x923 => Meaning::Again,
        0x921 => Meaning::Lockout,
        0x12f => Meaning::Auth,
        0x128 => Meaning::Policy,
        0x148 => Meaning::NvLocked,
        0x14a => Meaning::NvUnwritten,
        0x14b | 0x902 | 0x903 | 0x904 => Meaning::Memory,
        // References to handles or sessions that are not loaded.
        0x910..=0x91e => Meaning::NoSuchHandle,
        _ => Meaning::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_the_same_whatever_parameter_they_name() {
        for code in [0x8e, 0x98e, 0x1ce] {
            assert_eq!(meaning(code), Meaning::Auth, "{code:#x}");
        }
        assert_eq!(meaning(0x1df), Meaning::Integrity);
        assert_eq!(meaning(0x99d), Meaning::Policy);
        assert_eq!(meaning(0x18b), Meaning::NoSuchHandle);
        assert_eq!(meaning(0x922), Meaning::Again);
        assert_eq!(meaning(0x101), Meaning::Other);
    }
}
