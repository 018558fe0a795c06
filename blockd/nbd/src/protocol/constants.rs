//! Constants of the NBD protocol, with the names and in the sections of the protocol document (`doc/proto.md`
//! of the NetworkBlockDevice project), and the limits of this server.

// "Newstyle negotiation"

/// First eight bytes that a server sends: `NBDMAGIC`.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: second magic of the greeting, and first field of every option request.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First field of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

// "Handshake flags" (sent by the server) and "Client flags"

/// The server speaks fixed newstyle.
pub const NBD_FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// The server can omit the 124 zeroes of the reply to `NBD_OPT_EXPORT_NAME`.
pub const NBD_FLAG_NO_ZEROES: u16 = 1 << 1;
/// The client speaks fixed newstyle.
pub const NBD_FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// The client requests to omit the 124 zeroes.
pub const NBD_FLAG_C_NO_ZEROES: u32 = 1 << 1;

// "Option types"

/// Select an export and enter transmission; it has no error reply.
pub const NBD_OPT_EXPORT_NAME: u32 = 1;
/// End the negotiation.
pub const NBD_OPT_ABORT: u32 = 2;
/// List the exports.
pub const NBD_OPT_LIST: u32 = 3;
/// Start TLS.
pub const NBD_OPT_STARTTLS: u32 = 5;
/// Describe an export.
pub const NBD_OPT_INFO: u32 = 6;
/// Describe an export and enter transmission.
pub const NBD_OPT_GO: u32 = 7;
/// Negotiate structured replies.
pub const NBD_OPT_STRUCTURED_REPLY: u32 = 8;
/// List the metadata contexts of an export.
pub const NBD_OPT_LIST_META_CONTEXT: u32 = 9;
/// Select the metadata contexts of block status.
pub const NBD_OPT_SET_META_CONTEXT: u32 = 10;
/// Negotiate requests and replies with 64-bit lengths.
pub const NBD_OPT_EXTENDED_HEADERS: u32 = 11;

// "Option reply types"

/// The option succeeded, or its replies are complete.
pub const NBD_REP_ACK: u32 = 1;
/// One export of a list.
pub const NBD_REP_SERVER: u32 = 2;
/// One information item of an export.
pub const NBD_REP_INFO: u32 = 3;
/// One metadata context.
pub const NBD_REP_META_CONTEXT: u32 = 4;
/// The option is not supported.
pub const NBD_REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// The server's policy or state forbids the option.
pub const NBD_REP_ERR_POLICY: u32 = (1 << 31) + 2;
/// The option's data is malformed.
pub const NBD_REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// The client must start TLS first.
pub const NBD_REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
/// The export does not exist.
pub const NBD_REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// The option's data is too long.
pub const NBD_REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;
/// The option requires, or is superseded by, extended headers.
pub const NBD_REP_ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;

// "NBD_OPT_INFO and NBD_OPT_GO": information types

/// Export size and transmission flags.
pub const NBD_INFO_EXPORT: u16 = 0;
/// The export's canonical name.
pub const NBD_INFO_NAME: u16 = 1;
/// The export's description for humans.
pub const NBD_INFO_DESCRIPTION: u16 = 2;
/// Minimum and preferred block size, and maximum payload.
pub const NBD_INFO_BLOCK_SIZE: u16 = 3;

// "Transmission flags"

/// The flags field is valid.
pub const NBD_FLAG_HAS_FLAGS: u16 = 1 << 0;
/// The export is read-only.
pub const NBD_FLAG_READ_ONLY: u16 = 1 << 1;
/// `NBD_CMD_FLUSH` is supported.
pub const NBD_FLAG_SEND_FLUSH: u16 = 1 << 2;
/// `NBD_CMD_FLAG_FUA` is supported.
pub const NBD_FLAG_SEND_FUA: u16 = 1 << 3;
/// `NBD_CMD_TRIM` is supported.
pub const NBD_FLAG_SEND_TRIM: u16 = 1 << 5;
/// `NBD_CMD_WRITE_ZEROES` and `NBD_CMD_FLAG_NO_HOLE` are supported.
pub const NBD_FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// `NBD_CMD_FLAG_DF` is supported.
pub const NBD_FLAG_SEND_DF: u16 = 1 << 7;
/// A flush on one connection covers the writes answered on all connections.
pub const NBD_FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// `NBD_CMD_CACHE` is supported.
pub const NBD_FLAG_SEND_CACHE: u16 = 1 << 10;
/// `NBD_CMD_FLAG_FAST_ZERO` is supported.
pub const NBD_FLAG_SEND_FAST_ZERO: u16 = 1 << 11;
/// Block status accepts a payload that selects contexts (extended headers only).
pub const NBD_FLAG_BLOCK_STAT_PAYLOAD: u16 = 1 << 12;

// "Request message"

/// First field of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First field of every request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First field of every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First field of every chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First field of every chunk of a structured reply with an extended header.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

// "Structured reply flags" and "Structured reply types"

/// Last chunk of a reply.
pub const NBD_REPLY_FLAG_DONE: u16 = 1 << 0;
/// No data.
pub const NBD_REPLY_TYPE_NONE: u16 = 0;
/// Offset and data.
pub const NBD_REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// Offset and number of zeroes.
pub const NBD_REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// Context id, and (u32 length, u32 flags) for each extent.
pub const NBD_REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// Context id, count, and (u64 length, u64 flags) for each extent.
pub const NBD_REPLY_TYPE_BLOCK_STATUS_EXT: u16 = 6;
/// Error number and message.
pub const NBD_REPLY_TYPE_ERROR: u16 = (1 << 15) + 1;

// "Request types"

/// Read data.
pub const NBD_CMD_READ: u16 = 0;
/// Write data.
pub const NBD_CMD_WRITE: u16 = 1;
/// End the session (disconnect).
pub const NBD_CMD_DISC: u16 = 2;
/// Make every answered write durable.
pub const NBD_CMD_FLUSH: u16 = 3;
/// Discard a range.
pub const NBD_CMD_TRIM: u16 = 4;
/// Prefetch a range.
pub const NBD_CMD_CACHE: u16 = 5;
/// Fill a range with zeroes.
pub const NBD_CMD_WRITE_ZEROES: u16 = 6;
/// Query the status of a range in the selected metadata contexts.
pub const NBD_CMD_BLOCK_STATUS: u16 = 7;

// "Command flags"

/// Force unit access: the effect is durable before the reply.
pub const NBD_CMD_FLAG_FUA: u16 = 1 << 0;
/// Keep the zeroed range allocated.
pub const NBD_CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Don't fragment: the data of a structured read comes in one chunk.
pub const NBD_CMD_FLAG_DF: u16 = 1 << 2;
/// Request one extent for each context.
pub const NBD_CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Fail with `NBD_ENOTSUP` if zeroing is not faster than writing zeroes.
pub const NBD_CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
/// The length of an extended request is the length of its payload.
pub const NBD_CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

// "Metadata contexts"

/// Name of the context that reports holes and zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Prefix of dirty bitmap contexts, defined by qemu (`docs/interop/nbd.txt`).
pub const DIRTY_BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";
/// `base:allocation`: the extent has no allocated space.
pub const STATE_HOLE: u32 = 1 << 0;
/// `base:allocation`: the extent reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;
/// `qemu:dirty-bitmap`: the extent is dirty.
pub const STATE_DIRTY: u32 = 1 << 0;

// "Error values"

/// Operation not permitted.
pub const NBD_EPERM: u32 = 1;
/// Input/output error.
pub const NBD_EIO: u32 = 5;
/// Invalid argument.
pub const NBD_EINVAL: u32 = 22;
/// No space left on device.
pub const NBD_ENOSPC: u32 = 28;
/// Not supported.
pub const NBD_ENOTSUP: u32 = 95;
/// The server is shutting down.
pub const NBD_ESHUTDOWN: u32 = 108;

// Message lengths

/// Length of the greeting: two magics and the handshake flags.
pub const GREETING_LEN_BYTES: usize = 18;
/// Length of an option request before its data.
pub const OPTION_HEADER_LEN_BYTES: usize = 16;
/// Length of a compact request before its payload.
pub const REQUEST_LEN_BYTES: usize = 28;
/// Length of an extended request before its payload.
pub const EXTENDED_REQUEST_LEN_BYTES: usize = 32;
/// Length of a simple reply before its payload.
pub const SIMPLE_REPLY_LEN_BYTES: usize = 16;
/// Number of zeroes after the reply to `NBD_OPT_EXPORT_NAME`, unless both sides agreed to omit them.
pub const EXPORT_NAME_ZEROES_LEN_BYTES: usize = 124;

// Limits of this server

/// Minimum block size, in bytes.
pub const MIN_BLOCK_BYTES: u32 = 1;
/// Preferred block size, in bytes.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// Maximum payload of a read or write, in bytes.
pub const MAX_PAYLOAD_BYTES: u32 = 64 << 20;
/// Maximum payload of a refused request that the server receives and discards, in bytes; a longer one ends
/// the connection.
pub const MAX_DISCARD_BYTES: u32 = 128 << 20;
/// Minimum payload of a block status request, in bytes: the length of its range.
pub const STATUS_PAYLOAD_MIN_BYTES: u64 = 8;
/// Maximum payload of a block status request, in bytes: the length of its range and [`MAX_CONTEXTS`] ids.
pub const MAX_STATUS_PAYLOAD_BYTES: u64 = 8 + 4 * MAX_CONTEXTS as u64;
/// Maximum number of context queries in an option, and of selected contexts.
pub const MAX_CONTEXTS: usize = 1024;
/// Maximum number of extents in a block status reply, over all contexts; a client requests the rest
/// separately.
pub const MAX_STATUS_EXTENTS: usize = 8000;
/// Maximum length of a string in the protocol, in bytes.
pub const MAX_NAME_LEN_BYTES: usize = 4096;
/// Maximum option data that the server parses, in bytes; it discards and refuses longer data.
pub const MAX_OPTION_LEN_BYTES: u32 = 64 << 10;
/// Maximum option data that the server discards, in bytes; longer data ends the connection.
pub const MAX_OPTION_DISCARD_BYTES: u32 = 16 << 20;
