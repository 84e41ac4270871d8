//! What a file names that is to be measured.

use std::ffi::OsString;

use undermount::control::Failure;
use undermount::image::Reference;
use undermount::prepare::named::NamedImages;

/// An image and what is started in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The image.
    pub reference: Reference,
    /// The command and its arguments; nothing for the image's own.
    pub command: Vec<OsString>,
}

/// The images of an environment file, or of a list with an image and its command on each line;
/// words are separated by blanks, and nothing is quoted.
pub fn parse(text: &str) -> Result<Vec<Subject>, String> {
    // Commands follow the names of a list only.
    let names: Vec<&str> = text.lines().map(name).collect();
    let is_list = !text.lines().any(|line| line.trim_end() == "parameter_defaults:");
    let bare = if is_list { names.join("\n") } else { text.to_owned() };
    let named = NamedImages::parse(&bare).map_err(|error| Failure::of(&error).in_words())?;
    if !is_list {
        let subject = |reference| Subject { reference, command: Vec::new() };
        return Ok(named.images.into_iter().map(subject).collect());
    }
    let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(line, _)| line));
    let lines = lines.map(str::split_whitespace).filter_map(|mut words| {
        Some((words.next()?.parse().ok()?, words.map(OsString::from).collect()))
    });
    Ok(lines.map(|(reference, command)| Subject { reference, command }).collect())
}

/// A line up to the end of its first word.
fn name(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_images_with_commands() {
        let text = "# two\nr:5/one:1\nr:5/two:1 python3 -c pass # last\n";
        let subjects = parse(text).unwrap();
        let [one, two] = subjects.as_slice() else { panic!("{subjects:?}") };
        assert_eq!((one.reference.to_string().as_str(), one.command.len()), ("r:5/one:1", 0));
        assert_eq!(two.command, ["python3", "-c", "pass"]);
        assert!(parse("r:5/one:1\nR:5/:\n").unwrap_err().contains('2'));
    }

    #[test]
    fn an_environment_file_names_images() {
        let text = "parameter_defaults:\n  ContainerNovaImage: r:5/nova:1 # x\n  Other: 5\n";
        let subjects = parse(text).unwrap();
        assert_eq!(subjects.len(), 1);
        assert_eq!(subjects[0].reference.to_string(), "r:5/nova:1");
    }
}
