//! Decoders that have no target of their own, and why that is enough.

/// Files with something that reads bytes or text, and why no target runs it.
pub const ELSEWHERE: &[(&str, &str)] = &[
    (
        "agents/bot/src/commands/message/seen.rs",
        "reads what this program itself keeps in its home, which only its owner writes",
    ),
    (
        "agents/bot/src/home/keys.rs",
        "reads what this program itself keeps in its home; links in it are checked before a key is used",
    ),
    (
        "agents/bot/src/commands/recipe.rs",
        "decodes the target record after its proof; hashes and texts in it are the target recipe",
    ),
    (
        "agents/bot/src/commands/skill.rs",
        "a question that whoever tries a skill out writes himself, bounded; skill files are the target skill-file",
    ),
    ("agents/bot/src/flags/recipe.rs", "the command line of whoever runs croft; names in it are targets"),
    ("agents/bot/src/flags/bot.rs", "the command line of whoever runs croft"),
    ("agents/bot/src/commands/statement.rs", "decodes the target record after its proof"),
    (
        "agents/bot/src/flags.rs",
        "the command line of whoever runs croft; amounts and names in it are targets",
    ),
    (
        "agents/bot/src/flags/release.rs",
        "the command line of whoever runs croft; versions in it are a target",
    ),
    (
        "agents/bot/src/flags/market.rs",
        "the command line of whoever runs croft; amounts and names in it are targets",
    ),
    (
        "agents/bot/src/market/journal.rs",
        "this bot's own file, each entry behind its hash; its tests cut and alter it; transcripts in it are the target negotiation",
    ),
    (
        "agents/bot/src/market/order.rs",
        "decodes the target record of a reservation; the approval in it counts only with the farmer's signature",
    ),
    ("agents/bot/src/home/standing.rs", "reads the state that croft keep wrote into the person's own home"),
    ("agents/bot/src/image/testing.rs", "makes images for tests"),
    ("agents/bot/src/image/verity.rs", "writes the hash tree; the node reads it through the kernel"),
    ("agents/bot/src/plan.rs", "takes what flags parsed"),
    ("agents/ledger/src/invariants.rs", "reads what this ledger wrote; values are the target state-value"),
    ("agents/ledger/src/state_map.rs", "reads nodes of the map that jmt wrote on this very disk"),
    ("agents/ledger/src/work.rs", "reads what this ledger wrote; values are the target state-value"),
    (
        "agents/node/src/membership.rs",
        "this node's own document of two hashes, with its digest; damage is a test beside it",
    ),
    (
        "agents/node/src/upgrade.rs",
        "records are the target record, after their proof; the journal is this node's own document, with its digest",
    ),
    ("agents/node/src/register.rs", "records are the target record; proved before they are decoded"),
    (
        "agents/node/src/witness/measured.rs",
        "this node's own document, with its digest; counts only where it replays to the TPM's registers",
    ),
    ("agents/replica/src/blobs.rs", "names of blobs are hashes and keys: the target names-and-ids"),
    ("agents/replica/src/ordering/bft/core.rs", "takes decoded messages; simulated with liars"),
    ("agents/replica/src/store/past.rs", "reads a number that this store wrote"),
    (
        "agents/replica/src/store/search.rs",
        "its own tests run cursors of any bytes on a store with things in it",
    ),
    ("agents/replica/src/store/tables.rs", "makes and reads keys of fixed length"),
    ("agents/replica/src/store/verify.rs", "reads the target state-value"),
    ("agents/transport/src/client/link.rs", "reads the kernel's randomness"),
    ("agents/transport/src/verified/identity.rs", "decodes the target state-value after its proof"),
    ("agents/transport/src/verified/submit.rs", "decodes the target state-value after its proof"),
    (
        "agents/node/src/medium.rs",
        "a program's own module: its tests turn over the bytes of a medium; the file on it is the target addition",
    ),
    (
        "agents/node/src/netboot.rs",
        "a program's own module: its tests send all kinds of answers; the file in them is the target addition",
    ),
    ("image/builder/src/build.rs", "reads what cargo prints on the builder's machine"),
    ("image/builder/src/image.rs", "reads the sizes that it wrote itself"),
    ("image/builder/src/vmm.rs", "the builder's own command line"),
    (
        "image/media/src/authenticode.rs",
        "the builder's own files; its tests alter every byte of a signed one",
    ),
    ("image/media/src/efi_variable.rs", "the builder's own files"),
    ("image/media/src/iso.rs", "only its tests read"),
    ("image/media/src/pe.rs", "the builder's own files; its tests alter headers"),
    ("image/media/src/x509.rs", "the builder's own certificates"),
    ("os/guest/src/checks.rs", "reads a status line of the workload inside the workload's own microVM"),
    ("os/guest/src/exec.rs", "the guest's own command line"),
    ("os/guest/src/host.rs", "frames are the target host-frame"),
    ("os/guest/src/outbox.rs", "reads back what it queued"),
    ("os/init/src/clock.rs", "reads a number of the kernel"),
    ("os/init/src/power_button.rs", "reads fixed records of the kernel"),
    ("os/microvm/src/jail/mod.rs", "reads what the node itself wrote for its jail"),
    (
        "os/network/src/dhcp/socket.rs",
        "packets are filtered by the kernel; their content is the target dhcp-answer",
    ),
    ("os/network/src/firewall/apply.rs", "reads acknowledgements of the kernel"),
    ("os/network/src/firewall/encode.rs", "reads acknowledgements of the kernel"),
    ("os/network/src/rtnl.rs", "reads the kernel's netlink"),
    ("os/storage/src/examine.rs", "reads the ends of a disk for the target disk-signatures"),
    ("os/tpm/src/nv.rs", "reads what this machine's own TPM answers; its tests answer noise"),
    ("os/tpm/src/seal.rs", "reads what this machine's own TPM answers; its tests answer noise"),
    ("os/tpm/src/transport.rs", "frames of this machine's own TPM; its tests answer noise"),
];
