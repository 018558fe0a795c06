//! Random ids, and unique prefixes of ids.

use crate::error::ServiceError;
use blockd_api::ErrorCode;

/// Minimum length of a prefix: shorter ones match by accident.
const MIN_LEN: usize = 4;
/// Maximum length of a numeric prefix: longer numbers are complete ids, so that an id never matches a longer
/// one by chance.
const MAX_DIGITS: usize = 15;

/// Returns the entry whose id starts with `text`; `None` if there is none or the prefix is too short.
///
/// # Errors
/// Several ids start with `text`.
pub fn only_one<T>(
    what: &str,
    text: &str,
    all: impl Iterator<Item = (String, T)>,
) -> Result<Option<T>, ServiceError> {
    let text = text.to_ascii_lowercase();
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    if text.len() < MIN_LEN || (is_number && text.len() > MAX_DIGITS) {
        return Ok(None);
    }
    let mut found = all.filter(|(id, _)| id.starts_with(&text)).map(|(_, one)| one);
    let first = found.next();
    match found.count() {
        0 => Ok(first),
        others => {
            let message = format!(
                "id prefix {text} is ambiguous: it matches {} {what}; give more characters",
                others + 1
            );
            Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
        }
    }
}

/// Generates a random non-zero id.
///
/// # Errors
/// The system provides no random bytes.
pub fn random_id() -> Result<u64, blockd_secrets::SecretsError> {
    loop {
        let mut bytes = [0; 8];
        blockd_secrets::fill_random(&mut bytes)?;
        // Below 2^63, so that no tool reads it as a negative number.
        let number = u64::from_le_bytes(bytes) >> 1;
        if number != 0 {
            return Ok(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_prefix_must_be_long_enough_and_unique() {
        let ids = ["2724748349674290844", "2724000000000000001", "af563a4d-afd7-48df-90f7-8e8f9414ff77"];
        let found = |text: &str| only_one("volumes", text, ids.into_iter().map(|id| (id.to_owned(), id)));
        assert_eq!(found("27247").unwrap(), Some(ids[0]));
        assert_eq!(found("AF56").unwrap(), Some(ids[2]));
        for none in ["", "272", "af5", "9999", "27247483496742908", "nas-1"] {
            assert_eq!(found(none).unwrap(), None, "{none}");
        }
        let error = found("2724").unwrap_err().to_api();
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        assert!(
            error.message.contains("prefix 2724 is ambiguous: it matches 2 volumes"),
            "{}",
            error.message
        );
    }
}
