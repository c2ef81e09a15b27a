//! mod_jk's properties: not those of Java. A line is a name, `=` and a value; `#` begins a
//! comment wherever it stands; `$(NAME)` stands for another property or a variable. Nothing
//! is escaped and no line continued (`jk_map.c`).

use std::collections::HashMap;

use crate::import::Options;
use crate::import::source::{ImportError, Place, Source};

/// Longest line, as in mod_jk.
const LINE_MAX: usize = 8_192;
/// References of one value that are followed.
const VARIABLES_MAX: usize = 20;

/// A property.
#[derive(Clone, Debug)]
pub struct Property {
    /// Its value.
    pub value: String,
    /// Where it stands last.
    pub place: Place,
}

/// All properties, in the order of their first lines.
#[derive(Debug, Default)]
pub struct Properties {
    order: Vec<String>,
    map: HashMap<String, Property>,
}

/// Attributes of which several lines make one list.
const LISTS: [&str; 6] = [
    "list",
    "balance_workers",
    "balanced_workers",
    "mount",
    "user",
    "fail_on_status",
];

impl Properties {
    /// Adds those of a file.
    ///
    /// # Errors
    /// A line that is no property.
    pub fn read(&mut self, source: &Source, options: &Options) -> Result<(), ImportError> {
        for (place, line) in source.lines() {
            self.line(&place, line, options)?;
        }
        Ok(())
    }

    /// Adds that of a line.
    ///
    /// # Errors
    /// It is none.
    pub fn line(
        &mut self,
        place: &Place,
        line: &str,
        options: &Options,
    ) -> Result<(), ImportError> {
        if line.len() > LINE_MAX {
            let message = "the line is too long";
            return Err(ImportError::at(
                place,
                LINE_MAX,
                message,
                format!("at most {LINE_MAX} bytes"),
            ));
        }
        let text = line.split('#').next().unwrap_or_default();
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok(());
        }
        let column = text.len() - text.trim_start().len();
        let Some((name, value)) = trimmed.split_once('=') else {
            let expected = "a property such as `worker.list=app`: is this a workers.properties?";
            return Err(ImportError::at(place, column, "there is no `=`", expected));
        };
        let name = name.trim_end();
        if name.is_empty() {
            return Err(ImportError::at(
                place,
                column,
                "there is no name before `=`",
                "a property",
            ));
        }
        let value = self.replaced(value.trim(), options);
        self.put(name, value, place);
        Ok(())
    }

    fn put(&mut self, name: &str, value: String, place: &Place) {
        let attribute = name.rsplit('.').next().unwrap_or(name);
        match self.map.get_mut(name) {
            Some(old) if LISTS.contains(&attribute) => {
                old.value = format!("{},{value}", old.value);
                old.place = place.clone();
            }
            Some(old) => {
                *old = Property {
                    value,
                    place: place.clone(),
                };
            }
            None => {
                self.order.push(name.to_owned());
                let property = Property {
                    value,
                    place: place.clone(),
                };
                self.map.insert(name.to_owned(), property);
            }
        }
    }

    /// The value with properties and variables in the place of `$(NAME)`.
    fn replaced(&self, value: &str, options: &Options) -> String {
        let mut out = value.to_owned();
        let mut from = 0;
        for _ in 0..VARIABLES_MAX {
            let Some(begin) = out[from..].find("$(").map(|at| at + from) else {
                break;
            };
            let Some(end) = out[begin..].find(')').map(|at| at + begin) else {
                break;
            };
            let name = &out[begin + 2..end];
            let known = self.map.get(name).map(|property| &property.value);
            match known.or_else(|| options.environment.get(name)) {
                Some(value) if value.len() <= LINE_MAX => {
                    let value = value.clone();
                    out.replace_range(begin..=end, &value);
                }
                _ => from = end,
            }
        }
        out
    }

    /// A property.
    pub fn get(&self, name: &str) -> Option<&Property> {
        self.map.get(name)
    }

    /// Names, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.order.iter().map(String::as_str)
    }

    /// Gives workers what the template has that they refer to (`reference`), and do not say
    /// themselves.
    pub fn inherit(&mut self) -> Result<(), ImportError> {
        let suffix = ".reference";
        // A template may refer to another one; a circle ends here.
        for _ in 0..VARIABLES_MAX {
            let mut added = false;
            let references: Vec<(String, Property)> = self
                .order
                .iter()
                .filter_map(|name| {
                    Some((
                        name.strip_suffix(suffix)?.to_owned(),
                        self.map.get(name)?.clone(),
                    ))
                })
                .collect();
            for (worker, reference) in references {
                if reference.value.trim() == worker {
                    let message = "references lead in a circle";
                    let expected = "templates that do not refer to each other";
                    return Err(ImportError::at(&reference.place, 0, message, expected));
                }
                let prefix = format!("{}.", reference.value.trim());
                let inherited: Vec<(String, Property)> = self
                    .order
                    .iter()
                    .filter_map(|name| {
                        let attribute = name.strip_prefix(&prefix).filter(|a| !a.contains('.'))?;
                        let own = format!("{worker}.{attribute}");
                        let missing = !self.map.contains_key(&own);
                        missing.then(|| Some((own, self.map.get(name)?.clone())))?
                    })
                    .collect();
                for (name, property) in inherited {
                    // The worker's own reference stays.
                    added = true;
                    self.order.push(name.clone());
                    self.map.insert(name, property);
                }
                // The template's own reference is looked up by the worker itself then.
                if let Some(next) = self.map.get(&format!("{prefix}reference")).cloned()
                    && next.value != reference.value
                    && let Some(own) = self.map.get_mut(&format!("{worker}{suffix}"))
                {
                    own.value = next.value;
                    added = true;
                }
            }
            if !added {
                return Ok(());
            }
        }
        let place = self.order.iter().find(|name| name.ends_with(suffix));
        let place = place
            .and_then(|name| self.map.get(name))
            .map(|p| p.place.clone());
        let message = "references go too deep, or lead in a circle";
        let expected = format!("at most {VARIABLES_MAX} templates that refer to each other");
        match place {
            Some(place) => Err(ImportError::at(&place, 0, message, expected)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Result<Properties, String> {
        let source = Source::new(Path::new("w"), text.as_bytes()).map_err(|e| e.to_string())?;
        let mut options = Options::default();
        options.environment.insert("HOST".into(), "10.0.0.9".into());
        let mut properties = Properties::default();
        properties
            .read(&source, &options)
            .map_err(|e| e.to_string())?;
        properties.inherit().map_err(|e| e.to_string())?;
        Ok(properties)
    }

    #[test]
    fn properties_are_mod_jks() {
        let properties = read(
            "# all\r\nworker.list=a # one\nworker.list = b\nbase=$(HOST)\nworker.a.host=$(base)\nworker.a.port=1\nworker.a.port=2\n\
             worker.a.x=$(unknown)$(HOST)\nworker.t.reference=worker.base\nworker.base.lbfactor=3\nworker.base.reference=worker.deep\n\
             worker.deep.domain=d\nworker.a.reference=worker.t\nworker.b.path=a\\\n",
        )
        .unwrap();
        let value = |name: &str| properties.get(name).map(|p| p.value.as_str());
        assert_eq!(value("worker.list"), Some("a,b"));
        assert_eq!(value("worker.a.host"), Some("10.0.0.9"));
        assert_eq!(value("worker.a.port"), Some("2"));
        assert_eq!(value("worker.a.x"), Some("$(unknown)10.0.0.9"));
        assert_eq!(value("worker.a.lbfactor"), Some("3"));
        assert_eq!(value("worker.a.domain"), Some("d"));
        assert_eq!(value("worker.b.path"), Some("a\\"));
        assert_eq!(properties.get("worker.a.lbfactor").unwrap().place.line, 10);
    }

    #[test]
    fn what_is_none_is_refused() {
        assert!(
            read("worker.list=a\n  <xml/>\n")
                .unwrap_err()
                .starts_with("w:2:3: there is no `=`")
        );
        assert!(
            read("=x")
                .unwrap_err()
                .starts_with("w:1:1: there is no name")
        );
        let circle = "worker.a.reference=worker.b\nworker.b.reference=worker.a\n";
        assert!(read(circle).unwrap_err().contains("circle"));
    }
}
