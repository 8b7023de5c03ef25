// SPDX-License-Identifier: MPL-2.0

//! Interprets a pickle as far as it describes tensors.
//!
//! Values are nodes in one list and refer to each other by index, so that deeply nested or often repeated ones cost no more
//! than others.

use super::{ByteReader, Result};
use candle_core::{DType, Device, Tensor};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// The longest pickle in bytes. The names and shapes of a network's tensors take some ten kilobytes, with an optimiser's
/// state a few times that.
pub const MAX_PICKLE: usize = 1 << 20;

/// The longest name of a type, storage or tensor in bytes, and the largest number of a tensor's dimensions.
const MAX_NAME: usize = 100;
const MAX_DIMENSIONS: usize = 8;

/// The opcode that ends a pickle.
const STOP: usize = b'.' as usize;

/// The index of a value among all that were made.
type NodeId = usize;

enum Node {
    Text(String),
    Int(i64),
    Tuple(Vec<NodeId>),
    List(Vec<NodeId>),
    Dict(Vec<(NodeId, NodeId)>),
    /// `module.name`
    Global(String),
    Storage(Storage),
    Tensor(TensorInfo),
    /// A tensor that `BUILD` has yet to fill in, as written by the first versions of PyTorch.
    Unset,
    /// Anything that does not describe tensors.
    Other,
}

#[derive(Clone)]
pub struct Storage {
    /// As in `torch.FloatStorage`.
    class: String,
    /// Identifies it in the file.
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
pub struct TensorInfo {
    pub storage: Storage,
    offset: usize,
    pub shape: Vec<usize>,
    stride: Vec<usize>,
}

impl TensorInfo {
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
        let last = self.last_index().ok_or("its shape cannot be")?;
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

    /// The distance from the first value to the last in storage, in values; `None` if there are none, or if it overflows.
    fn last_index(&self) -> Option<usize> {
        let mut last = 0usize;
        for (&side, &stride) in self.shape.iter().zip(&self.stride) {
            last = last.checked_add(side.checked_sub(1)?.checked_mul(stride)?)?;
        }
        Some(last)
    }

    /// Copies values of `size` bytes from the order of the strides, in which channels may be last, to that of the
    /// dimensions.
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
        let mut indices = vec![0];
        for (&side, &stride) in self.shape.iter().zip(&self.stride) {
            let steps = |index: usize| (0..side).map(move |step| index + step * stride);
            indices = indices.into_iter().flat_map(steps).collect();
        }
        let ordered = indices
            .iter()
            .flat_map(|index| &values[index * size..][..size]);
        ordered.copied().collect()
    }
}

/// The part of Python's pickle machine (CPython, `Lib/pickletools.py`) that `torch.save` uses for tensors.
#[derive(Default)]
pub struct PickleMachine {
    nodes: Vec<Node>,
    stack: Vec<NodeId>,
    /// The stack's heights at the marks.
    marks: Vec<usize>,
    memo: HashMap<usize, NodeId>,
}

impl PickleMachine {
    /// Runs the next pickle of `program`, whose result is then on top of the stack.
    pub fn run(program: &mut ByteReader) -> Result<Self> {
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

    fn step(&mut self, code: u8, program: &mut ByteReader) -> Option<()> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let node = match code {
            // PROTO, FRAME: protocol version and frame length, ignored
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
            // BINUNICODE, SHORT_BINUNICODE; BINSTRING, SHORT_BINSTRING of Python 2
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
                        // Little-endian, sign-extended from its last byte.
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
                Node::Tuple(self.pop_from(start)?)
            }
            b't' => Node::Tuple(self.pop_to_mark()?),
            // EMPTY_DICT, EMPTY_LIST
            b'}' => Node::Dict(Vec::new()),
            b']' => Node::List(Vec::new()),
            // SETITEM, SETITEMS
            b's' => {
                let items = self.pop_from(self.stack.len().checked_sub(2)?)?;
                return self.extend(&items);
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                return self.extend(&items);
            }
            // APPEND, APPENDS
            b'a' => {
                let item = self.pop()?;
                return self.extend(&[item]);
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                return self.extend(&items);
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
                return self.call(function, arguments);
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

    /// The top of the stack, if it lies above the last mark.
    fn pop(&mut self) -> Option<NodeId> {
        let bottom = self.marks.last().copied().unwrap_or_default();
        if self.stack.len() > bottom {
            self.stack.pop()
        } else {
            None
        }
    }

    /// The values from height `start` on, if none lies below the last mark.
    fn pop_from(&mut self, start: usize) -> Option<Vec<NodeId>> {
        let bottom = self.marks.last().copied().unwrap_or_default();
        (start >= bottom).then(|| self.stack.split_off(start))
    }

    fn pop_to_mark(&mut self) -> Option<Vec<NodeId>> {
        let mark = self.marks.pop()?;
        Some(self.stack.split_off(mark))
    }

    fn put(&mut self, key: usize) -> Option<()> {
        self.memo.insert(key, *self.stack.last()?);
        Some(())
    }

    fn get(&mut self, key: usize) -> Option<()> {
        self.stack.push(*self.memo.get(&key)?);
        Some(())
    }

    /// Adds items to the dictionary or list on top of the stack.
    fn extend(&mut self, items: &[NodeId]) -> Option<()> {
        match &mut self.nodes[*self.stack.last()?] {
            Node::Dict(dict) => {
                let pairs = items.chunks_exact(2).map(|pair| (pair[0], pair[1]));
                dict.extend(pairs);
            }
            Node::List(list) => list.extend(items),
            // Another object, whose contents do not matter.
            _ => (),
        }
        Some(())
    }

    fn text(&self, value: NodeId) -> Option<&str> {
        match &self.nodes[value] {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    fn name(&self, value: NodeId) -> Option<&str> {
        self.text(value).filter(|text| text.len() <= MAX_NAME)
    }

    fn tuple(&self, value: NodeId) -> Option<&[NodeId]> {
        match &self.nodes[value] {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn size(&self, value: NodeId) -> Option<usize> {
        match self.nodes[value] {
            Node::Int(number) => usize::try_from(number).ok(),
            _ => None,
        }
    }

    fn sizes(&self, value: NodeId) -> Option<Vec<usize>> {
        let items = self.tuple(value)?;
        let sizes = items.iter().map(|&size| self.size(size));
        (items.len() <= MAX_DIMENSIONS).then(|| sizes.collect())?
    }

    /// `("storage", class, key, device, length)`
    fn storage(&self, id: NodeId) -> Option<Storage> {
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

    /// Pushes the result of a function, if it is one that `torch.save` needs for tensors.
    fn call(&mut self, function: NodeId, arguments: NodeId) -> Option<()> {
        let (function, arguments) = self.inner_call(function, arguments)?;
        let Node::Global(name) = &self.nodes[function] else {
            self.push(Node::Other);
            return Some(());
        };
        let items = self.tuple(arguments)?;
        let node = match name.as_str() {
            "collections.OrderedDict" => Node::Dict(match items.first().copied() {
                Some(list) => self.take_pairs(list)?,
                None => Vec::new(),
            }),
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => {
                Node::Tensor(self.tensor(items)?)
            }
            "torch.FloatTensor" | "torch.DoubleTensor" | "torch.HalfTensor" => Node::Unset,
            // Their argument, as it is.
            "torch.Size" | "torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter" => {
                self.stack.push(*items.first()?);
                return Some(());
            }
            _ => Node::Other,
        };
        self.push(node);
        Some(())
    }

    /// The call that one of `_rebuild_from_type_v2` makes; any other itself. The arguments are a function, a
    /// class, and the arguments of that function.
    fn inner_call(&self, function: NodeId, arguments: NodeId) -> Option<(NodeId, NodeId)> {
        match &self.nodes[function] {
            Node::Global(name) if name == "torch._tensor._rebuild_from_type_v2" => {
                let &[inner, _, inner_arguments, ..] = self.tuple(arguments)? else {
                    return None;
                };
                Some((inner, inner_arguments))
            }
            _ => Some((function, arguments)),
        }
    }

    /// The items of an `OrderedDict`: Python 2 passes them as a list of pairs, Python 3 sets them later. The
    /// list is made for that alone, so that it may be taken: a copy for each call could be any size.
    fn take_pairs(&mut self, list: NodeId) -> Option<Vec<(NodeId, NodeId)>> {
        let Node::List(list) = &mut self.nodes[list] else {
            return None;
        };
        let list = std::mem::take(list);
        let pairs = list.iter().map(|&pair| match &self.nodes[pair] {
            Node::List(pair) | Node::Tuple(pair) => Some((*pair.first()?, *pair.get(1)?)),
            _ => None,
        });
        pairs.collect()
    }

    /// Sets the attributes of the object on top of the stack; only those of an unset tensor matter.
    fn build(&mut self, attributes: NodeId) -> Option<()> {
        let top = *self.stack.last()?;
        if matches!(self.nodes[top], Node::Unset)
            && let Some(info) = self.tuple(attributes).and_then(|items| self.tensor(items))
        {
            self.nodes[top] = Node::Tensor(info);
        }
        Some(())
    }

    /// `(storage, offset, shape, stride, ...)`
    fn tensor(&self, items: &[NodeId]) -> Option<TensorInfo> {
        let &[storage, offset, shape, stride, ..] = items else {
            return None;
        };
        let Node::Storage(storage) = &self.nodes[storage] else {
            return None;
        };
        let (shape, stride) = (self.sizes(shape)?, self.sizes(stride)?);
        (shape.len() == stride.len()).then_some(TensorInfo {
            storage: storage.clone(),
            offset: self.size(offset)?,
            shape,
            stride,
        })
    }

    /// The tensors in the resulting dictionary and in those nested in it, as in a training checkpoint.
    pub fn tensors(&self) -> Vec<(String, &TensorInfo)> {
        let mut tensors = Vec::new();
        let result = self.stack.last().map(|&top| (String::new(), top));
        let mut dicts = Vec::from_iter(result);
        // A dictionary may occur several times, even within itself.
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

    /// The strings in the resulting list.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let result = self.stack.last().map(|&top| &self.nodes[top]);
        let items = match result {
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
