//! Text in lines of a width, with a hanging indent.

/// First component of the names of objects in stores.
const OBJECTS: &str = "blockd/";

/// Breaks a text at spaces. The first line begins with `head`, the others with `indent` spaces, or fewer for
/// a word that fits into a line then. Of words that are longer than a line, names of objects are cut, others
/// exceed `columns`: users copy them.
pub fn hanging(head: &str, text: &str, indent: usize, columns: usize) -> String {
    let count = |text: &str| text.chars().count();
    if count(head) + count(text) <= columns {
        return format!("{head}{text}");
    }
    let (mut lines, mut line) = (Vec::new(), head.to_owned());
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let shown = if word.starts_with(OBJECTS) { cut(word, columns) } else { word.to_owned() };
        let word = shown.as_str();
        let gap = if line.ends_with(' ') || line.is_empty() { "" } else { " " };
        if count(&line) + gap.len() + count(word) <= columns {
            line = line + gap + word;
            continue;
        }
        // A head of spaces is the indent of the first word.
        if !line.trim().is_empty() {
            lines.push(line.trim_end().to_owned());
        }
        line = " ".repeat(indent.min(columns.saturating_sub(count(word)))) + word;
    }
    lines.push(line);
    lines.join("\n")
}

/// Cuts a text in the middle: names often differ at their ends.
pub fn cut(text: &str, width: usize) -> String {
    let len = text.chars().count();
    if len <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let end = kept / 3;
    let start: String = text.chars().take(kept - end).collect();
    let end: String = text.chars().skip(len - end).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_words_and_hang_below_the_text() {
        assert_eq!(hanging("ok    ", "fits  as it is", 6, 20), "ok    fits  as it is");
        assert_eq!(hanging("- ", "one two three four", 2, 10), "- one two\n  three\n  four");
        assert_eq!(hanging("", "one two three", 2, 9), "one two\n  three");
        // A long word has less indent, and exceeds a line only if it is longer.
        assert_eq!(hanging("-> ", "see 123456789", 6, 10), "-> see\n 123456789");
        assert_eq!(hanging("-> ", "see 12345678901 it", 6, 10), "-> see\n12345678901\n      it");
        assert_eq!(hanging("  ", "1234567890 it", 2, 10), "1234567890\n  it");
        assert_eq!(
            hanging("- ", "object blockd/data/1-2/pack-0 is", 2, 16),
            "- object\nblockd/dat…ack-0\n  is"
        );
    }
}
