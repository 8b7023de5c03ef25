// SPDX-License-Identifier: MPL-2.0

//! What a pickle says of tensors.
//!
//! Values are kept side by side and refer to each other by their places, so that what is nested deeply, or used often,
//! costs no more than what is not.

use super::{Reader, Result};
use candle_core::{DType, Device, Tensor};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// The names and shapes of a network's tensors take some ten kilobytes, with an optimiser's a few times that.
pub const MAX_PICKLE: usize = 1 << 20;

/// A name of a type or a storage, and the dimensions of a tensor, are no longer than this.
const MAX_NAME: usize = 100;
const MAX_DIMENSIONS: usize = 8;

/// The opcode that ends a pickle.
const STOP: usize = b'.' as usize;

/// A value by its place among all that were made.
type Ref = usize;

enum Node {
    Text(String),
    Int(i64),
    Tuple(Vec<Ref>),
    List(Vec<Ref>),
    Dict(Vec<(Ref, Ref)>),
    /// `module.name`
    Global(String),
    Storage(Storage),
    Tensor(Info),
    /// A tensor that is told its values by `BUILD`, as PyTorch's first versions wrote it.
    Unset,
    /// What tensors are not made of.
    Other,
}

#[derive(Clone)]
pub struct Storage {
    /// As in `torch.FloatStorage`.
    class: String,
    /// Its name in the file.
    pub key: String,
}

impl Storage {
    pub fn value_size(&self) -> Option<usize> {
        match self.class.strip_prefix("torch.")?.strip_suffix("Storage")? {
            "Double" | "Long" => Some(8),
            "Float" | "Int" => Some(4),
            "Half" | "BFloat16" | "Short" => Some(2),
            "Char" | "Byte" | "Bool" => Some(1),
            _ => None,
        }
    }
}

#[derive(Clone)]
pub struct Info {
    pub storage: Storage,
    offset: usize,
    pub shape: Vec<usize>,
    stride: Vec<usize>,
}

impl Info {
    pub fn read(&self, values: &[u8]) -> Result<Tensor> {
        let dtype = match self.storage.class.as_str() {
            "torch.FloatStorage" => DType::F32,
            "torch.DoubleStorage" => DType::F64,
            "torch.HalfStorage" => DType::F16,
            "torch.BFloat16Storage" => DType::BF16,
            other => return Err(format!("{other} is not a type that can be read")),
        };
        let size = dtype.size_in_bytes();
        let too_short = || format!("the file ends before {:?} values", self.shape);
        let last = self.last().ok_or("its shape cannot be")?;
        let start = self.offset.checked_mul(size).ok_or_else(too_short)?;
        let length = last
            .checked_add(1)
            .and_then(|count| count.checked_mul(size));
        let end = length.and_then(|length| start.checked_add(length));
        let values = end
            .and_then(|end| values.get(start..end))
            .ok_or_else(too_short)?;
        let values = self.in_order(values, size);
        Tensor::from_raw_buffer(&values, dtype, &self.shape, &Device::Cpu)
            .map_err(|error| error.to_string())
    }

    /// The place of the last value after the offset, counted in values; `None` where there is none.
    fn last(&self) -> Option<usize> {
        let mut last = 0usize;
        for (&side, &stride) in self.shape.iter().zip(&self.stride) {
            last = last.checked_add(side.checked_sub(1)?.checked_mul(stride)?)?;
        }
        Some(last)
    }

    /// Values of `size` bytes in the order of the dimensions, which are stored as the strides have it: channels may be last.
    fn in_order<'a>(&self, values: &'a [u8], size: usize) -> Cow<'a, [u8]> {
        let mut expected = 1;
        let dimensions = self.shape.iter().zip(&self.stride).rev();
        let in_order = dimensions.clone().all(|(&side, &stride)| {
            let fits = side == 1 || stride == expected;
            expected *= side;
            fits
        });
        if in_order {
            return values.into();
        }
        let mut places = vec![0];
        for (&side, &stride) in self.shape.iter().zip(&self.stride) {
            let steps = |place: usize| (0..side).map(move |step| place + step * stride);
            places = places.into_iter().flat_map(steps).collect();
        }
        let ordered = places
            .iter()
            .flat_map(|place| &values[place * size..][..size]);
        ordered.copied().collect()
    }
}

/// Python's pickle machine (CPython, `Lib/pickletools.py`), as far as `torch.save` needs it for tensors.
#[derive(Default)]
pub struct Machine {
    nodes: Vec<Node>,
    stack: Vec<Ref>,
    /// The heights of the stack where marks are.
    marks: Vec<usize>,
    memo: HashMap<usize, Ref>,
}

impl Machine {
    /// The machine after a program, with its result on the stack; what follows the program is left to read.
    pub fn run(program: &mut Reader) -> Result<Self> {
        let mut machine = Self::default();
        let length = program.0.len();
        loop {
            let at = length - program.0.len();
            if at > MAX_PICKLE {
                return Err("its pickle is far too long".into());
            }
            match program.number(1) {
                None => return Err("its pickle has no end".into()),
                Some(STOP) => return Ok(machine),
                Some(code) => machine
                    .step(code as u8, program)
                    .ok_or_else(|| format!("its pickle cannot be followed at byte {at}"))?,
            }
        }
    }

    fn step(&mut self, code: u8, program: &mut Reader) -> Option<()> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let node = match code {
            // PROTO, FRAME: how the rest is written
            0x80 => return program.take(1).map(drop),
            0x95 => return program.take(8).map(drop),
            // MARK
            b'(' => {
                self.marks.push(self.stack.len());
                return Some(());
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => return self.put(program.number(1)?),
            b'r' => return self.put(program.number(4)?),
            0x94 => return self.put(self.memo.len()),
            // BINGET, LONG_BINGET
            b'h' => return self.get(program.number(1)?),
            b'j' => return self.get(program.number(4)?),
            // BINUNICODE, SHORT_BINUNICODE; BINSTRING, SHORT_BINSTRING, which are Python 2's
            b'X' | b'T' => {
                let length = program.number(4)?;
                Node::Text(text(program.take(length)?)?)
            }
            0x8C | b'U' => {
                let length = program.number(1)?;
                Node::Text(text(program.take(length)?)?)
            }
            // BININT, BININT1, BININT2, LONG1
            b'J' => Node::Int(i64::from(program.number(4)? as u32 as i32)),
            b'K' => Node::Int(program.number(1)? as i64),
            b'M' => Node::Int(program.number(2)? as i64),
            0x8A => {
                let length = program.number(1)?;
                match program.take(length)? {
                    bytes if length <= 8 => {
                        // The last byte's sign goes on to the left.
                        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
                        let mut number = [if negative { 0xFF } else { 0 }; 8];
                        number[..length].copy_from_slice(bytes);
                        Node::Int(i64::from_le_bytes(number))
                    }
                    _ => Node::Other,
                }
            }
            // BINFLOAT; NONE, NEWTRUE, NEWFALSE
            b'G' => program.take(8).map(|_| Node::Other)?,
            b'N' | 0x88 | 0x89 => Node::Other,
            // EMPTY_TUPLE, TUPLE1 to TUPLE3, TUPLE
            b')' => Node::Tuple(Vec::new()),
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(code - 0x84))?;
                Node::Tuple(self.above(start)?)
            }
            b't' => Node::Tuple(self.above_mark()?),
            // EMPTY_DICT, EMPTY_LIST
            b'}' => Node::Dict(Vec::new()),
            b']' => Node::List(Vec::new()),
            // SETITEM, SETITEMS
            b's' => {
                let items = self.above(self.stack.len().checked_sub(2)?)?;
                return self.fill(&items);
            }
            b'u' => {
                let items = self.above_mark()?;
                return self.fill(&items);
            }
            // APPEND, APPENDS
            b'a' => {
                let item = self.pop()?;
                return self.fill(&[item]);
            }
            b'e' => {
                let items = self.above_mark()?;
                return self.fill(&items);
            }
            // BUILD
            b'b' => {
                let attributes = self.pop()?;
                return self.build(attributes);
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (text(program.line()?)?, text(program.line()?)?);
                Node::Global(format!("{module}.{name}"))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                Node::Global(format!("{}.{}", self.name(module)?, self.name(name)?))
            }
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                self.storage(id).map_or(Node::Other, Node::Storage)
            }
            // REDUCE, NEWOBJ
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments)?
            }
            _ => return None,
        };
        self.push(node);
        Some(())
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    /// The topmost value, if it lies above the last mark.
    fn pop(&mut self) -> Option<Ref> {
        let bottom = self.marks.last().copied().unwrap_or_default();
        if self.stack.len() > bottom {
            self.stack.pop()
        } else {
            None
        }
    }

    fn above(&mut self, start: usize) -> Option<Vec<Ref>> {
        let bottom = self.marks.last().copied().unwrap_or_default();
        (start >= bottom).then(|| self.stack.split_off(start))
    }

    fn above_mark(&mut self) -> Option<Vec<Ref>> {
        let mark = self.marks.pop()?;
        Some(self.stack.split_off(mark))
    }

    fn put(&mut self, place: usize) -> Option<()> {
        self.memo.insert(place, *self.stack.last()?);
        Some(())
    }

    fn get(&mut self, place: usize) -> Option<()> {
        self.stack.push(*self.memo.get(&place)?);
        Some(())
    }

    fn fill(&mut self, items: &[Ref]) -> Option<()> {
        match &mut self.nodes[*self.stack.last()?] {
            Node::Dict(dict) => {
                let pairs = items.chunks_exact(2).map(|pair| (pair[0], pair[1]));
                dict.extend(pairs);
            }
            Node::List(list) => list.extend(items),
            // Something else, of which nothing is kept.
            _ => (),
        }
        Some(())
    }

    fn text(&self, value: Ref) -> Option<&str> {
        match &self.nodes[value] {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    fn name(&self, value: Ref) -> Option<&str> {
        self.text(value).filter(|text| text.len() <= MAX_NAME)
    }

    fn tuple(&self, value: Ref) -> Option<&[Ref]> {
        match &self.nodes[value] {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn size(&self, value: Ref) -> Option<usize> {
        match self.nodes[value] {
            Node::Int(number) => usize::try_from(number).ok(),
            _ => None,
        }
    }

    fn sizes(&self, value: Ref) -> Option<Vec<usize>> {
        let items = self.tuple(value)?;
        let sizes = items.iter().map(|&size| self.size(size));
        (items.len() <= MAX_DIMENSIONS).then(|| sizes.collect())?
    }

    /// `("storage", class, key, device, length)`
    fn storage(&self, id: Ref) -> Option<Storage> {
        let &[_, class, key, ..] = self.tuple(id)? else {
            return None;
        };
        let Node::Global(class) = &self.nodes[class] else {
            return None;
        };
        (class.len() <= MAX_NAME).then_some(Storage {
            class: class.clone(),
            key: self.name(key)?.into(),
        })
    }

    /// What a function makes of its arguments, if it is one that makes tensors.
    fn call(&self, mut function: Ref, mut arguments: Ref) -> Option<Node> {
        loop {
            let Node::Global(name) = &self.nodes[function] else {
                return Some(Node::Other);
            };
            let items = self.tuple(arguments)?;
            match name.as_str() {
                "collections.OrderedDict" => return self.dict(items).map(Node::Dict),
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => {
                    return self.tensor(items).map(Node::Tensor);
                }
                "torch.FloatTensor" | "torch.DoubleTensor" | "torch.HalfTensor" => {
                    return Some(Node::Unset);
                }
                "torch.Size" => return Some(Node::Tuple(self.tuple(*items.first()?)?.to_vec())),
                "torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter" => {
                    return match &self.nodes[*items.first()?] {
                        Node::Tensor(info) => Some(Node::Tensor(info.clone())),
                        _ => Some(Node::Other),
                    };
                }
                // A function, a class, and the function's arguments: which came before this tuple.
                "torch._tensor._rebuild_from_type_v2" => {
                    let &[inner, _, inner_arguments, ..] = items else {
                        return None;
                    };
                    (function, arguments) = (inner, inner_arguments);
                }
                _ => return Some(Node::Other),
            }
        }
    }

    /// Python 2 gives the items of an `OrderedDict` with the call, as a list of pairs; Python 3 sets them later.
    fn dict(&self, items: &[Ref]) -> Option<Vec<(Ref, Ref)>> {
        let Some(&list) = items.first() else {
            return Some(Vec::new());
        };
        let Node::List(list) = &self.nodes[list] else {
            return None;
        };
        let pairs = list.iter().map(|&pair| match &self.nodes[pair] {
            Node::List(pair) | Node::Tuple(pair) => Some((*pair.first()?, *pair.get(1)?)),
            _ => None,
        });
        pairs.collect()
    }

    /// Gives the topmost value attributes, of which only an unset tensor's matter.
    fn build(&mut self, attributes: Ref) -> Option<()> {
        let top = *self.stack.last()?;
        if matches!(self.nodes[top], Node::Unset)
            && let Some(info) = self.tuple(attributes).and_then(|items| self.tensor(items))
        {
            self.nodes[top] = Node::Tensor(info);
        }
        Some(())
    }

    /// `(storage, offset, shape, stride, ...)`
    fn tensor(&self, items: &[Ref]) -> Option<Info> {
        let &[storage, offset, shape, stride, ..] = items else {
            return None;
        };
        let Node::Storage(storage) = &self.nodes[storage] else {
            return None;
        };
        let (shape, stride) = (self.sizes(shape)?, self.sizes(stride)?);
        (shape.len() == stride.len()).then_some(Info {
            storage: storage.clone(),
            offset: self.size(offset)?,
            shape,
            stride,
        })
    }

    fn result(&self) -> Option<&Node> {
        self.stack.last().map(|&top| &self.nodes[top])
    }

    /// The tensors of the dictionary that is the result, and of those in it, as in a checkpoint of a training.
    pub fn tensors(&self) -> Vec<(String, &Info)> {
        let mut tensors = Vec::new();
        let mut dicts: Vec<(String, Ref)> = Vec::new();
        dicts.extend(self.stack.last().map(|&top| (String::new(), top)));
        // A dictionary may stand in several places, itself among them.
        let mut seen = HashSet::new();
        while let Some((path, dict)) = dicts.pop() {
            let Node::Dict(items) = &self.nodes[dict] else {
                continue;
            };
            if !seen.insert(dict) {
                continue;
            }
            for &(name, value) in items {
                let Some(name) = self.name(name) else {
                    continue;
                };
                match &self.nodes[value] {
                    Node::Tensor(info) => tensors.push((format!("{path}{name}"), info)),
                    Node::Dict(_) if path.len() <= MAX_NAME => {
                        dicts.push((format!("{path}{name}."), value));
                    }
                    _ => (),
                }
            }
        }
        tensors
    }

    /// The texts of the list that is the result.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let items = match self.result() {
            Some(Node::List(items)) => items.as_slice(),
            _ => &[],
        };
        items.iter().filter_map(|&item| self.text(item))
    }

    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}
