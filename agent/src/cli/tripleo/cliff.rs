//! Results as the original's commands print them: the formats of cliff, OpenStack's command line.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};
use undermount::prepare::yaml;

use crate::cli::exit::CliResult;

/// How a list is printed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct ListFormat {
    /// How the list is printed
    #[arg(short = 'f', long, value_enum, default_value_t = ListForm::Table)]
    format: ListForm,
    /// What is quoted in the format `csv`
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Quote::Nonnumeric)]
    quote: Quote,
    /// Print the frame of a table without rows
    #[arg(long)]
    print_empty: bool,
    /// Column to sort by; may be repeated, the first counts most
    #[arg(long = "sort-column", value_name = "COLUMN")]
    sort_columns: Vec<String>,
    /// Sort from the least to the greatest, as is done anyway
    #[arg(long, conflicts_with = "sort_descending")]
    sort_ascending: bool,
    /// Sort from the greatest to the least
    #[arg(long)]
    sort_descending: bool,
    #[command(flatten)]
    common: Common,
}

/// How one thing is printed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct RecordFormat {
    /// How it is printed
    #[arg(short = 'f', long, value_enum, default_value_t = RecordForm::Json)]
    format: RecordForm,
    /// What names begin with in the format `shell`
    #[arg(long, value_name = "PREFIX", default_value = "")]
    prefix: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Column to print; may be repeated [default: all]
    #[arg(short = 'c', long = "column", value_name = "COLUMN")]
    columns: Vec<String>,
    /// JSON in one line
    #[arg(long)]
    noindent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListForm {
    /// With a frame
    Table,
    /// Values, one row per line
    Value,
    /// Values with commas between them
    Csv,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Which cells have quotes around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Quote {
    /// All
    All,
    /// Those that could not be read without
    Minimal,
    /// None
    None,
    /// Those that are no numbers
    Nonnumeric,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RecordForm {
    /// JSON
    Json,
    /// Assignments for a shell
    Shell,
    /// With a frame
    Table,
    /// Values, one per line
    Value,
    /// YAML
    Yaml,
}

/// Names and values, in order.
#[derive(Debug, Clone, Default)]
pub struct Record(pub Vec<(&'static str, Value)>);

impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl Record {
    /// The columns that were asked for.
    fn chosen(self, columns: &[String]) -> Result<Self, String> {
        if columns.is_empty() {
            return Ok(self);
        }
        let names: Vec<_> = self.0.iter().map(|(name, _)| *name).collect();
        let wanted = |name: &str| columns.iter().any(|column| column == name);
        let chosen = Self(self.0.into_iter().filter(|(name, _)| wanted(name)).collect());
        match chosen.0.is_empty() {
            true => Err(format!(
                "No recognized column names in {columns:?}. Recognized columns are {names:?}."
            )),
            false => Ok(chosen),
        }
    }

    /// What stands in the column called `name`.
    fn value(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| text(value))
    }

    fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(_, value)| text(value))
    }
}

impl ListFormat {
    /// Prints rows that have the columns `titles`.
    ///
    /// # Errors
    /// Where a column that is asked for does not exist.
    pub fn print(&self, titles: &[&'static str], mut rows: Vec<Record>) -> CliResult<()> {
        self.sort(&mut rows);
        let named = Record(titles.iter().map(|title| (*title, Value::Null)).collect());
        let titles = named.chosen(&self.common.columns)?;
        let titles: Vec<_> = titles.0.iter().map(|(name, _)| (*name).to_owned()).collect();
        let rows: Result<Vec<_>, _> =
            rows.into_iter().map(|row| row.chosen(&self.common.columns)).collect();
        let rows = rows?;
        let cells = || rows.iter().map(|row| row.texts().collect::<Vec<_>>());
        print(&match self.format {
            ListForm::Table if rows.is_empty() && !self.print_empty => "\n".to_owned(),
            ListForm::Table => table(&titles, &cells().collect::<Vec<_>>()),
            ListForm::Value => cells().map(|row| row.join(" ") + "\n").collect(),
            ListForm::Csv => {
                let lines = std::iter::once(titles).chain(cells());
                lines.map(|row| csv(&row, self.quote)).collect()
            }
            ListForm::Json => self.common.json(&rows)?,
            ListForm::Yaml => in_yaml(&rows)?,
        })
    }

    /// Sorts as the flags say. Columns that do not exist do not count.
    fn sort(&self, rows: &mut [Record]) {
        let is_reversed = self.sort_descending && !self.sort_ascending;
        for column in self.sort_columns.iter().rev() {
            rows.sort_by(|one, other| {
                let order = one.value(column).cmp(&other.value(column));
                if is_reversed { order.reverse() } else { order }
            });
        }
    }
}

impl RecordFormat {
    /// Prints one thing.
    ///
    /// # Errors
    /// Where a column that is asked for does not exist.
    pub fn print(&self, record: Record) -> CliResult<()> {
        let record = record.chosen(&self.common.columns)?;
        let pairs = || record.0.iter().map(|(name, _)| *name).zip(record.texts());
        print(&match self.format {
            RecordForm::Json => self.common.json(&record)?,
            RecordForm::Yaml => in_yaml(&record)?,
            RecordForm::Value => record.texts().map(|value| value + "\n").collect(),
            RecordForm::Shell => {
                pairs().map(|(name, value)| shell(&self.prefix, name, &value)).collect()
            }
            RecordForm::Table => {
                let rows: Vec<_> = pairs().map(|(name, value)| vec![name.into(), value]).collect();
                table(&["Field".into(), "Value".into()], &rows)
            }
        })
    }
}

impl Common {
    fn json<T: Serialize>(&self, data: &T) -> serde_json::Result<String> {
        if !self.noindent {
            return Ok(serde_json::to_string_pretty(data)? + "\n");
        }
        let mut line = Vec::new();
        data.serialize(&mut Serializer::with_formatter(&mut line, OneLine))?;
        line.push(b'\n');
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

/// JSON in one line, with spaces where Python has them.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(to, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}

fn print(text: &str) -> CliResult<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// JSON is YAML.
fn in_yaml<T: Serialize>(data: &T) -> CliResult<String> {
    Ok(yaml::write(&yaml::read(&serde_json::to_string(data)?)?))
}

/// The value as Python prints it.
fn text(value: &Value) -> String {
    yaml::read(&value.to_string()).map_or_else(|_| value.to_string(), |value| value.to_string())
}

fn shell(prefix: &str, name: &str, value: &str) -> String {
    let name = name.to_lowercase().replace([' ', '-', ':'], "_");
    format!("{prefix}{name}=\"{}\"\n", value.replace('"', "\\\""))
}

/// One line. Cells are text, also those that look like numbers.
fn csv(row: &[String], quote: Quote) -> String {
    let is_quoted = |cell: &str| match quote {
        Quote::All | Quote::Nonnumeric => true,
        Quote::Minimal => cell.contains([',', '"', '\n', '\r']),
        Quote::None => false,
    };
    let cells = row.iter().map(|cell| match is_quoted(cell) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.clone(),
    });
    cells.collect::<Vec<_>>().join(",") + "\n"
}

fn table(titles: &[String], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = titles.iter().map(String::len).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    let dashes = widths.iter().map(|width| "-".repeat(width + 2) + "+");
    let rule = format!("+{}\n", dashes.collect::<String>());
    let body: String = rows.iter().map(|row| line(row)).collect();
    format!("{rule}{}{rule}{body}{rule}", line(titles))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record() -> Record {
        Record(vec![("Name", json!("n")), ("Labels", json!({ "a": "1", "b": null }))])
    }

    #[test]
    fn values_print_as_python_prints_them() {
        let texts: Vec<_> = record().texts().collect();
        assert_eq!(texts, ["n", "{'a': '1', 'b': None}"]);
    }

    #[test]
    fn rows_are_sorted_as_the_flags_say() {
        let sorted = |column: &str, sort_descending| {
            let format = ListFormat {
                format: ListForm::Value,
                quote: Quote::All,
                print_empty: false,
                sort_columns: vec![column.to_owned()],
                sort_ascending: false,
                sort_descending,
                common: Common { columns: Vec::new(), noindent: false },
            };
            let mut rows = ["b", "c", "a"].map(|name| Record(vec![("Name", json!(name))]));
            format.sort(&mut rows);
            rows.map(|row| row.texts().collect::<String>()).concat()
        };
        assert_eq!(sorted("Name", false), "abc");
        assert_eq!(sorted("Name", true), "cba");
        assert_eq!(sorted("Size", true), "bca");
    }

    #[test]
    fn json_in_one_line_has_pythons_spaces() {
        let common = Common { columns: Vec::new(), noindent: true };
        let line = common.json(&[record(), Record(vec![("Tags", json!(["a", "b"]))])]).unwrap();
        let expected = r#"[{"Name": "n", "Labels": {"a": "1", "b": null}}, {"Tags": ["a", "b"]}]"#;
        assert_eq!(line, format!("{expected}\n"));
    }

    #[test]
    fn columns_are_chosen_by_name_and_unknown_ones_refused() {
        let columns = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            record().chosen(&names)
        };
        assert_eq!(serde_json::to_string(&columns(&["Name"]).unwrap()).unwrap(), r#"{"Name":"n"}"#);
        assert_eq!(columns(&[]).unwrap().0.len(), 2);
        let words = columns(&["Size"]).unwrap_err();
        assert!(words.contains("No recognized column names in [\"Size\"]"), "{words}");
    }

    #[test]
    fn frames_commas_and_assignments_are_cliffs() {
        let (titles, rows) = (["A".to_owned(), "B".into()], [vec!["long".to_owned(), "x".into()]]);
        let rule = "+------+---+\n";
        assert_eq!(
            table(&titles, &rows),
            format!("{rule}| A    | B |\n{rule}| long | x |\n{rule}")
        );
        let row = ["a \"b\"".to_owned(), "c".into()];
        for (quote, line) in [
            (Quote::Nonnumeric, "\"a \"\"b\"\"\",\"c\"\n"),
            (Quote::Minimal, "\"a \"\"b\"\"\",c\n"),
            (Quote::None, "a \"b\",c\n"),
        ] {
            assert_eq!(csv(&row, quote), line);
        }
        assert_eq!(shell("i_", "Docker Version", "a \"b\""), "i_docker_version=\"a \\\"b\\\"\"\n");
    }
}
