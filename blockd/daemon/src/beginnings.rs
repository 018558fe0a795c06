//! The beginning of an id, where it says as much as all of it.

use crate::error::ServiceError;
use blockd_api::ErrorCode;

/// The fewest characters: fewer are hit by mistake.
const LEN_LEAST: usize = 4;
/// The most digits of a number: what is longer is taken for all of an id, so that nothing stands for a longer one by chance.
const DIGITS_MOST: usize = 15;

/// The one whose id begins with `text`; none if there is none, or if it is too little to tell.
///
/// # Errors
/// There are several.
pub(crate) fn only_one<T>(
    what: &str,
    text: &str,
    all: impl Iterator<Item = (String, T)>,
) -> Result<Option<T>, ServiceError> {
    let text = text.to_ascii_lowercase();
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    if text.len() < LEN_LEAST || (is_number && text.len() > DIGITS_MOST) {
        return Ok(None);
    }
    let mut found = all.filter(|(id, _)| id.starts_with(&text)).map(|(_, one)| one);
    let first = found.next();
    match found.count() {
        0 => Ok(first),
        others => {
            let message =
                format!("{} {what} have an id that begins with {text}: give more of it", others + 1);
            Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_must_be_long_enough_and_of_one_id_only() {
        let ids = ["2724748349674290844", "2724000000000000001", "af563a4d-afd7-48df-90f7-8e8f9414ff77"];
        let found = |text: &str| only_one("volumes", text, ids.into_iter().map(|id| (id.to_owned(), id)));
        assert_eq!(found("27247").unwrap(), Some(ids[0]));
        assert_eq!(found("AF56").unwrap(), Some(ids[2]));
        for none in ["", "272", "af5", "9999", "27247483496742908", "nas-1"] {
            assert_eq!(found(none).unwrap(), None, "{none}");
        }
        let error = found("2724").unwrap_err().to_api();
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        assert!(error.message.starts_with("2 volumes have an id that begins with 2724"), "{}", error.message);
    }
}
