//! A configuration in the making: tables and keys that remember which line they come
//! from, and how they are printed.

use super::source::Place;

/// A value of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(u64),
    /// `true` or `false`.
    Boolean(bool),
    /// An array of strings.
    Texts(Vec<Item>),
    /// An array of whole numbers.
    Integers(Vec<u64>),
    /// An array of inline tables of strings: `[{ set = "X", value = "y" }]`.
    Pairs(Vec<(Vec<(&'static str, String)>, Place)>),
}

/// A string of an array.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The string.
    pub text: String,
    /// Where it comes from, when that is another line than the key's.
    pub place: Option<Place>,
    pub(super) gone: bool,
}

impl Item {
    /// A string from a line.
    pub fn new(text: impl Into<String>, place: &Place) -> Self {
        Self {
            text: text.into(),
            place: Some(place.clone()),
            gone: false,
        }
    }
}

impl From<&str> for Item {
    fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            place: None,
            gone: false,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(number)
    }
}

impl From<bool> for Value {
    fn from(on: bool) -> Self {
        Self::Boolean(on)
    }
}

/// A key.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
    /// Where it comes from.
    pub place: Option<Place>,
    pub(super) gone: bool,
}

/// A table: `[name]`, or one of `[[name]]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    name: &'static str,
    array: bool,
    /// Where it comes from.
    pub place: Option<Place>,
    /// What stands above it.
    pub comment: Option<String>,
    keys: Vec<Key>,
    tables: Vec<Table>,
    pub(super) gone: bool,
}

impl Table {
    /// One of an array of tables.
    pub fn one_of(name: &'static str, place: &Place) -> Self {
        Self {
            name,
            array: true,
            place: Some(place.clone()),
            ..Self::default()
        }
    }

    /// Sets a key, over an earlier value.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>, place: &Place) -> &mut Self {
        self.put(name, value.into(), Some(place.clone()));
        self
    }

    /// Sets a key that comes from nowhere but is needed.
    pub fn set_own(&mut self, name: &'static str, value: impl Into<Value>) -> &mut Self {
        self.put(name, value.into(), None);
        self
    }

    fn put(&mut self, name: &'static str, value: Value, place: Option<Place>) {
        let key = Key {
            name,
            value,
            place,
            gone: false,
        };
        match self.keys.iter_mut().find(|key| key.name == name) {
            Some(old) => *old = key,
            None => self.keys.push(key),
        }
    }

    /// Adds to an array of strings.
    pub fn add(&mut self, name: &'static str, text: impl Into<String>, place: &Place) {
        let item = Item::new(text, place);
        match self.keys.iter_mut().find(|key| key.name == name) {
            Some(Key {
                value: Value::Texts(items),
                ..
            }) => items.push(item),
            _ => self.put(name, Value::Texts(vec![item]), Some(place.clone())),
        }
    }

    /// Sets an array of numbers; what is no number is not in it.
    pub fn set_numbers(&mut self, name: &'static str, texts: &[String], place: &Place) {
        let mut numbers: Vec<u64> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        self.put(name, Value::Integers(numbers), Some(place.clone()));
    }

    /// Adds a change of a header.
    pub fn add_pair(
        &mut self,
        name: &'static str,
        pair: Vec<(&'static str, String)>,
        place: &Place,
    ) {
        match self.keys.iter_mut().find(|key| key.name == name) {
            Some(Key {
                value: Value::Pairs(pairs),
                ..
            }) => pairs.push((pair, place.clone())),
            _ => {
                let value = Value::Pairs(vec![(pair, place.clone())]);
                self.put(name, value, Some(place.clone()));
            }
        }
    }

    /// A key's value.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.keys
            .iter()
            .find(|key| key.name == name)
            .map(|key| &key.value)
    }

    /// A string's value.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Takes a key out.
    pub fn remove(&mut self, name: &str) {
        self.keys.retain(|key| key.name != name);
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tables.is_empty()
    }

    /// The only key's name, when there is nothing else.
    pub fn only_key(&self) -> Option<&'static str> {
        match (&self.keys[..], &self.tables[..]) {
            ([key], []) => Some(key.name),
            _ => None,
        }
    }

    /// The table of this name; made when it is not there.
    pub fn table(&mut self, name: &'static str) -> &mut Table {
        let at = match self.tables.iter().position(|t| t.name == name && !t.array) {
            Some(at) => at,
            None => {
                self.tables.push(Self {
                    name,
                    ..Self::default()
                });
                self.tables.len() - 1
            }
        };
        &mut self.tables[at]
    }

    /// The table of this name, when it is there.
    pub fn known(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|t| t.name == name && !t.array)
    }

    /// Those of an array of tables.
    pub fn all(&self, name: &'static str) -> impl Iterator<Item = &Table> {
        self.tables
            .iter()
            .filter(move |t| t.name == name && t.array)
    }

    /// Those of an array of tables.
    pub fn all_mut(&mut self, name: &'static str) -> impl Iterator<Item = &mut Table> {
        self.tables
            .iter_mut()
            .filter(move |t| t.name == name && t.array)
    }

    /// Has a table stand before all others.
    pub fn bring_forward(&mut self, name: &str) {
        self.tables.sort_by_key(|table| table.name != name);
    }

    /// Takes an array of tables out.
    pub fn drop_all(&mut self, name: &str) {
        self.tables
            .retain(|table| !(table.array && table.name == name));
    }

    /// Adds a table to an array of them.
    pub fn push(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Adds a table with another name than its own.
    pub fn push_as(&mut self, name: &'static str, array: bool, mut table: Table) {
        table.name = name;
        table.array = array;
        self.tables.push(table);
    }

    /// Adds all keys and tables of another one.
    pub fn take_over(&mut self, other: &Table) {
        for key in &other.keys {
            self.put(key.name, key.value.clone(), key.place.clone());
        }
        self.tables.extend(other.tables.iter().cloned());
    }

    /// Takes out what was marked.
    pub(super) fn sweep(&mut self) {
        self.tables.retain(|table| !table.gone);
        for table in &mut self.tables {
            table.sweep();
        }
        // A table that lost all it had says nothing any more.
        self.tables.retain(|table| table.array || !table.is_empty());
        self.keys.retain(|key| !key.gone);
        for key in &mut self.keys {
            if let Value::Texts(items) = &mut key.value {
                items.retain(|item| !item.gone);
            }
        }
    }

    pub(super) fn keys_mut(&mut self) -> &mut Vec<Key> {
        &mut self.keys
    }

    pub(super) fn tables_mut(&mut self) -> &mut Vec<Table> {
        &mut self.tables
    }
}

/// What a printed line is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The way to the table, from the root.
    pub table: Vec<usize>,
    /// The key in it; the table itself without.
    pub key: Option<usize>,
    /// The string of its array.
    pub item: Option<usize>,
}

/// A configuration as text.
pub struct Printed {
    /// The text.
    pub text: String,
    /// For each line; `None` for comments and empty lines.
    pub owners: Vec<Option<Owner>>,
}

/// What is printed in place of a string, by the names of table and key and by the string.
pub type StandIn<'a> = &'a dyn Fn(&str, &str, &str) -> Option<String>;

/// Prints it.
pub fn print(root: &Table, stand_in: StandIn<'_>) -> Printed {
    let mut out = Printed {
        text: String::new(),
        owners: Vec::new(),
    };
    table(root, &mut Vec::new(), &mut Vec::new(), stand_in, &mut out);
    out
}

impl Printed {
    fn line(&mut self, text: &str, owner: Option<Owner>) {
        self.text.push_str(text);
        self.text.push('\n');
        self.owners.push(owner);
    }
}

fn table(
    of: &Table,
    names: &mut Vec<&'static str>,
    way: &mut Vec<usize>,
    stand_in: StandIn<'_>,
    out: &mut Printed,
) {
    let owner = |key, item| {
        Some(Owner {
            table: way.clone(),
            key,
            item,
        })
    };
    // Tables that only hold others need no header.
    if !names.is_empty() && (of.array || !of.keys.is_empty()) {
        out.line("", None);
        for line in of.comment.iter().flat_map(|text| text.lines()) {
            out.line(&format!("# {line}"), None);
        }
        let name = names.join(".");
        let header = match of.array {
            true => format!("[[{name}]]"),
            false => format!("[{name}]"),
        };
        out.line(&commented(header, of.place.as_ref()), owner(None, None));
    }
    for (at, key) in of.keys.iter().enumerate() {
        let name = key.name;
        let place = key
            .place
            .as_ref()
            .filter(|place| of.place.as_ref() != Some(place));
        if let Value::Text(text) = &key.value
            && let Some(value) = stand_in(of.name, name, text)
        {
            out.line(
                &format!("{name} = {}", quoted(&value)),
                owner(Some(at), None),
            );
            continue;
        }
        match &key.value {
            Value::Texts(items) if items.len() > 1 => {
                out.line(&format!("{name} = ["), owner(Some(at), None));
                for (i, item) in items.iter().enumerate() {
                    let line = format!("    {},", quoted(&item.text));
                    let place = item.place.as_ref().filter(|p| of.place.as_ref() != Some(p));
                    out.line(&commented(line, place), owner(Some(at), Some(i)));
                }
                out.line("]", owner(Some(at), None));
            }
            Value::Pairs(pairs) => {
                out.line(&format!("{name} = ["), owner(Some(at), None));
                for (pair, place) in pairs {
                    let inside: Vec<String> = pair
                        .iter()
                        .map(|(k, v)| format!("{k} = {}", quoted(v)))
                        .collect();
                    let line = format!("    {{ {} }},", inside.join(", "));
                    let place = Some(place).filter(|p| of.place.as_ref() != Some(p));
                    // A change that can't be made takes all of them with it: their order counts.
                    out.line(&commented(line, place), owner(Some(at), None));
                }
                out.line("]", owner(Some(at), None));
            }
            Value::Texts(items) if name == "pattern" && items.len() == 1 => {
                let line = format!("{name} = {}", quoted(&items[0].text));
                out.line(&commented(line, place), owner(Some(at), Some(0)));
            }
            value => {
                let line = format!("{name} = {}", single(value));
                out.line(&commented(line, place), owner(Some(at), None));
            }
        }
    }
    for (at, inner) in of.tables.iter().enumerate() {
        names.push(inner.name);
        way.push(at);
        table(inner, names, way, stand_in, out);
        way.pop();
        names.pop();
    }
}

fn single(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(on) => on.to_string(),
        Value::Texts(items) => {
            let items: Vec<String> = items.iter().map(|item| quoted(&item.text)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Integers(numbers) => {
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            format!("[{}]", numbers.join(", "))
        }
        Value::Pairs(_) => "[]".to_owned(),
    }
}

fn commented(line: String, place: Option<&Place>) -> String {
    match place {
        Some(place) => format!("{line:<39} # {}", plain(&place.to_string())),
        None => line,
    }
}

/// Text for a comment: nothing that would end it, or that TOML refuses there.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A duration as the configuration writes it.
pub fn duration(milliseconds: u64) -> String {
    match milliseconds {
        ms if ms == 0 || ms % 1_000 != 0 => {
            let (s, ms) = (ms / 1_000, ms % 1_000);
            match s {
                0 => format!("{ms}ms"),
                s => format!("{s}s{ms}ms"),
            }
        }
        ms => {
            let s = ms / 1_000;
            match s {
                s if s % 86_400 == 0 => format!("{}d", s / 86_400),
                s if s % 3_600 == 0 => format!("{}h", s / 3_600),
                s if s % 60 == 0 => format!("{}m", s / 60),
                s => format!("{s}s"),
            }
        }
    }
}
