//! Libraries, functions and pipelines.

use crate::candle;
use objc2::{rc::Retained, runtime::ProtocolObject};
use objc2_foundation::{NSError, NSString};
use shader_runner::{Build, Library, Source};
use std::{
    collections::HashMap,
    ffi::c_void,
    ptr::NonNull,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

#[derive(Debug)]
pub struct MTLCompileOptions;
#[derive(Debug, Clone, Copy)]
pub enum MTLMathMode {
    Safe,
    Relaxed,
    Fast,
}
#[derive(Debug, Clone, Copy)]
pub enum MTLMathFloatingPointFunctions {
    Fast,
    Precise,
}

impl MTLCompileOptions {
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Retained<Self> {
        Retained::stand_in(Self)
    }

    pub fn setMathMode(&self, _: MTLMathMode) {}

    pub fn setMathFloatingPointFunctions(&self, _: MTLMathFloatingPointFunctions) {}

    pub fn setFastMathEnabled(&self, _: bool) {}
}

#[derive(Debug, Clone, Copy)]
pub enum MTLDataType {
    Bool,
    Float,
    ULong,
    UShort,
}

#[derive(Debug)]
pub struct MTLFunctionConstantValues;

impl MTLFunctionConstantValues {
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Retained<Self> {
        Retained::stand_in(Self)
    }

    /// Does nothing: the shaders here have no such constants.
    ///
    /// # Safety
    /// None is needed here.
    pub unsafe fn setConstantValue_type_atIndex(&self, _: NonNull<c_void>, _: MTLDataType, _: usize) {}
}

/// A compiled library: the project's own is run, of Candle's a few functions are known.
#[derive(Clone)]
enum Shaders {
    Own(Arc<Library>),
    Candle,
}

/// What a dispatch runs.
#[derive(Clone)]
pub(crate) enum Function {
    Own { library: Arc<Library>, name: String, writes: Vec<usize> },
    Candle(candle::Function),
}

impl Function {
    pub fn name(&self) -> &str {
        match self {
            Self::Own { name, .. } => name,
            Self::Candle(function) => function.name,
        }
    }

    /// Indices of the buffers that it writes.
    pub fn writes(&self) -> &[usize] {
        match self {
            Self::Own { writes, .. } => writes,
            Self::Candle(function) => std::slice::from_ref(&function.output),
        }
    }
}

type Made<T> = Result<Retained<ProtocolObject<T>>, Retained<NSError>>;

pub trait MTLLibrary {
    fn newFunctionWithName(&self, name: &NSString) -> Option<Retained<ProtocolObject<dyn MTLFunction>>>;
    fn newFunctionWithName_constantValues_error(
        &self,
        name: &NSString,
        values: &MTLFunctionConstantValues,
    ) -> Made<dyn MTLFunction>;
}

pub trait MTLFunction {}

pub trait MTLComputePipelineState {
    fn maxTotalThreadsPerThreadgroup(&self) -> usize;
}

/// Candle's libraries begin otherwise.
const OWN: &str = "#line 1 \"common.metal\"";

pub(crate) fn library(source: &str) -> Result<Retained<ProtocolObject<dyn MTLLibrary>>, String> {
    static COMPILED: OnceLock<Mutex<HashMap<String, Arc<Library>>>> = OnceLock::new();
    if !source.starts_with(OWN) {
        return Ok(ProtocolObject::stand_in(Shaders::Candle));
    }
    let mut compiled = COMPILED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if !compiled.contains_key(source) {
        let library = Library::compile(source, Build::Fast).map_err(|e| e.to_string())?;
        compiled.insert(source.into(), Arc::new(library));
    }
    Ok(ProtocolObject::stand_in(Shaders::Own(compiled[source].clone())))
}

impl MTLLibrary for ProtocolObject<dyn MTLLibrary> {
    fn newFunctionWithName(&self, name: &NSString) -> Option<Retained<ProtocolObject<dyn MTLFunction>>> {
        let name = name.to_string();
        let function = match self.object::<Shaders>() {
            Shaders::Candle => Function::Candle(candle::function(&name)?),
            Shaders::Own(library) => {
                let kernel = library.kernels().iter().find(|kernel| kernel.name == name)?;
                let buffers = kernel.parameters.iter().filter(|p| p.writable);
                let writes = buffers.filter_map(|p| match p.source {
                    Source::Buffer(i) => Some(i),
                    _ => None,
                });
                Function::Own { library: library.clone(), name, writes: writes.collect() }
            }
        };
        Some(ProtocolObject::stand_in(function))
    }

    fn newFunctionWithName_constantValues_error(
        &self,
        name: &NSString,
        _: &MTLFunctionConstantValues,
    ) -> Made<dyn MTLFunction> {
        self.newFunctionWithName(name).ok_or_else(|| NSError::stand_in(format!("no function {name}")))
    }
}

pub(crate) fn pipeline(
    function: &ProtocolObject<dyn MTLFunction>,
) -> Retained<ProtocolObject<dyn MTLComputePipelineState>> {
    ProtocolObject::stand_in(function.object::<Function>().clone())
}

impl MTLComputePipelineState for ProtocolObject<dyn MTLComputePipelineState> {
    fn maxTotalThreadsPerThreadgroup(&self) -> usize {
        1024
    }
}
