//! Numbers of the NBD protocol, under the names of the protocol document
//! (`doc/proto.md` of the NetworkBlockDevice project), grouped by its sections.

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
/// The server can leave out the 124 zeroes after `NBD_OPT_EXPORT_NAME`.
pub const NBD_FLAG_NO_ZEROES: u16 = 1 << 1;
/// The client speaks fixed newstyle.
pub const NBD_FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// The client wants the 124 zeroes left out.
pub const NBD_FLAG_C_NO_ZEROES: u32 = 1 << 1;

// "Option types"

/// Choose an export and enter transmission; has no way to report an error.
pub const NBD_OPT_EXPORT_NAME: u32 = 1;
/// End the negotiation.
pub const NBD_OPT_ABORT: u32 = 2;
/// List the exports.
pub const NBD_OPT_LIST: u32 = 3;
/// Describe an export.
pub const NBD_OPT_INFO: u32 = 6;
/// Describe an export and enter transmission.
pub const NBD_OPT_GO: u32 = 7;

// "Option reply types"

/// The option was carried out.
pub const NBD_REP_ACK: u32 = 1;
/// One export of a list.
pub const NBD_REP_SERVER: u32 = 2;
/// One piece of information on an export.
pub const NBD_REP_INFO: u32 = 3;
/// The option is not known here.
pub const NBD_REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// The server does not allow it now.
pub const NBD_REP_ERR_POLICY: u32 = (1 << 31) + 2;
/// The option's data is malformed.
pub const NBD_REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// The export does not exist.
pub const NBD_REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// The option's data is too long.
pub const NBD_REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

// "NBD_OPT_INFO and NBD_OPT_GO": information types

/// Size and transmission flags.
pub const NBD_INFO_EXPORT: u16 = 0;
/// The export's canonical name.
pub const NBD_INFO_NAME: u16 = 1;
/// A description for people.
pub const NBD_INFO_DESCRIPTION: u16 = 2;
/// Minimum, preferred and maximum block size.
pub const NBD_INFO_BLOCK_SIZE: u16 = 3;

// "Transmission flags"

/// The flags field is valid.
pub const NBD_FLAG_HAS_FLAGS: u16 = 1 << 0;
/// The export cannot be written.
pub const NBD_FLAG_READ_ONLY: u16 = 1 << 1;
/// `NBD_CMD_FLUSH` is served.
pub const NBD_FLAG_SEND_FLUSH: u16 = 1 << 2;
/// `NBD_CMD_FLAG_FUA` is served.
pub const NBD_FLAG_SEND_FUA: u16 = 1 << 3;
/// `NBD_CMD_TRIM` is served.
pub const NBD_FLAG_SEND_TRIM: u16 = 1 << 5;
/// `NBD_CMD_WRITE_ZEROES` is served.
pub const NBD_FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// A flush on one connection covers writes answered on all of them.
pub const NBD_FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

// "Request message"

/// First field of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First field of every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

// "Request types"

/// Read data.
pub const NBD_CMD_READ: u16 = 0;
/// Write data.
pub const NBD_CMD_WRITE: u16 = 1;
/// End the session.
pub const NBD_CMD_DISC: u16 = 2;
/// Make every answered write durable.
pub const NBD_CMD_FLUSH: u16 = 3;
/// Discard a range.
pub const NBD_CMD_TRIM: u16 = 4;
/// Fill a range with zeroes.
pub const NBD_CMD_WRITE_ZEROES: u16 = 6;

// "Command flags"

/// The command's effect is durable before its reply.
pub const NBD_CMD_FLAG_FUA: u16 = 1 << 0;
/// Zeroes must keep their space allocated.
pub const NBD_CMD_FLAG_NO_HOLE: u16 = 1 << 1;

// "Error values"

/// Operation not permitted.
pub const NBD_EPERM: u32 = 1;
/// Input/output error.
pub const NBD_EIO: u32 = 5;
/// Invalid argument.
pub const NBD_EINVAL: u32 = 22;
/// No space left on device.
pub const NBD_ENOSPC: u32 = 28;
/// The server is shutting down.
pub const NBD_ESHUTDOWN: u32 = 108;

// Lengths that the messages have.

/// Bytes of the greeting: two magics and the handshake flags.
pub const GREETING_LEN_BYTES: usize = 18;
/// Bytes of an option request before its data.
pub const OPTION_HEADER_LEN_BYTES: usize = 16;
/// Bytes of a request before its payload.
pub const REQUEST_LEN_BYTES: usize = 28;
/// Bytes of a simple reply before its payload.
pub const SIMPLE_REPLY_LEN_BYTES: usize = 16;
/// Zeroes after the reply to `NBD_OPT_EXPORT_NAME`, unless both sides agreed to leave them out.
pub const EXPORT_NAME_ZEROES_LEN_BYTES: usize = 124;

// What this server allows.

/// Smallest request that is served, in bytes.
pub const MIN_BLOCK_BYTES: u32 = 1;
/// Request granularity that performs best, in bytes.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// Largest payload of a read or a write, in bytes.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// Longest payload of a refused write that is received and thrown away, in bytes; one that
/// announces more loses its connection.
pub const MAX_DISCARD_BYTES: u32 = 64 << 20;
/// Longest export name that the protocol allows, in bytes.
pub const MAX_NAME_LEN_BYTES: usize = 4096;
/// Longest data of an option that is looked at, in bytes; longer data is thrown away and refused.
pub const MAX_OPTION_LEN_BYTES: u32 = 64 << 10;
/// Longest data of an option that is thrown away, in bytes; a longer one costs the connection.
pub const MAX_OPTION_DISCARD_BYTES: u32 = 16 << 20;
