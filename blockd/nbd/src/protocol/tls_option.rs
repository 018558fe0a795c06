//! `NBD_OPT_STARTTLS`, and the refusal of other options before TLS: the modes `NOTLS`, `SELECTIVETLS` and
//! `FORCEDTLS` of the NBD protocol document.

use crate::protocol::constants::*;
use crate::protocol::options::Refusal;

/// TLS stage of a negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsStage {
    /// The socket has no TLS (`NOTLS`).
    Unavailable,
    /// The client may start TLS (`SELECTIVETLS`).
    Offered,
    /// The client must start TLS before other options (`FORCEDTLS`).
    Required,
    /// The negotiation runs over TLS.
    Active,
}

/// TLS decision about an option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TlsVerdict {
    /// Process the option.
    Pass,
    /// Acknowledge the option, then start the TLS handshake.
    Start,
    /// Close the connection: the option has no error reply.
    Close,
}

/// Decides on an option with `data_len_bytes` of data.
pub(crate) fn validate(stage: TlsStage, option: u32, data_len_bytes: usize) -> Result<TlsVerdict, Refusal> {
    let refuse = |reply_type, message| Err(Refusal::new(reply_type, message));
    match (option, stage) {
        (NBD_OPT_STARTTLS, TlsStage::Unavailable) => {
            refuse(NBD_REP_ERR_POLICY, "TLS is not available on this socket")
        }
        (NBD_OPT_STARTTLS, TlsStage::Active) => refuse(NBD_REP_ERR_INVALID, "TLS is already active"),
        (NBD_OPT_STARTTLS, _) if data_len_bytes > 0 => {
            refuse(NBD_REP_ERR_INVALID, "NBD_OPT_STARTTLS takes no data")
        }
        (NBD_OPT_STARTTLS, _) => Ok(TlsVerdict::Start),
        (NBD_OPT_EXPORT_NAME, TlsStage::Required) => Ok(TlsVerdict::Close),
        (NBD_OPT_ABORT, _) => Ok(TlsVerdict::Pass),
        (_, TlsStage::Required) => refuse(NBD_REP_ERR_TLS_REQD, "TLS is required on this socket"),
        _ => Ok(TlsVerdict::Pass),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_have_defined_replies() {
        let code = |stage, option, len| match validate(stage, option, len) {
            Err(refusal) => refusal.reply_type,
            Ok(TlsVerdict::Pass) => 0,
            Ok(TlsVerdict::Start) => 1,
            Ok(TlsVerdict::Close) => 2,
        };
        use TlsStage::*;
        for (stage, start, with_data, export_name, list) in [
            (Unavailable, NBD_REP_ERR_POLICY, NBD_REP_ERR_POLICY, 0, 0),
            (Offered, 1, NBD_REP_ERR_INVALID, 0, 0),
            (Required, 1, NBD_REP_ERR_INVALID, 2, NBD_REP_ERR_TLS_REQD),
            (Active, NBD_REP_ERR_INVALID, NBD_REP_ERR_INVALID, 0, 0),
        ] {
            assert_eq!(code(stage, NBD_OPT_STARTTLS, 0), start, "{stage:?}");
            assert_eq!(code(stage, NBD_OPT_STARTTLS, 1), with_data, "{stage:?}");
            assert_eq!(code(stage, NBD_OPT_EXPORT_NAME, 3), export_name, "{stage:?}");
            assert_eq!(code(stage, NBD_OPT_ABORT, 0), 0, "{stage:?}");
            for option in [NBD_OPT_LIST, NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_STRUCTURED_REPLY, 4242] {
                assert_eq!(code(stage, option, 0), list, "{stage:?}");
            }
        }
    }
}
