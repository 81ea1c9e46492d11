"""libattnd through ctypes, as far as the comparisons with PyTorch call it: mirrors client/attnd.h."""

import ctypes
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int, c_int32, c_int64
from ctypes import c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p

BOTTOM_RIGHT, TOP_LEFT = 0, 1
UNBOUNDED = -1
FOREVER = -1


class DLDevice(ctypes.Structure):
    _fields_ = [("type", c_int32), ("id", c_int32)]


class DLDataType(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p), ("device", DLDevice), ("ndim", c_int32), ("dtype", DLDataType),
        ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)), ("byte_offset", c_uint64),
    ]


TENSOR = POINTER(DLTensor)


class OpenOptions(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("address", c_char_p), ("name", c_char_p), ("timeout_ns", c_int64),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("scale", c_float), ("softcap", c_float), ("causal", c_bool),
        ("deterministic", c_bool), ("alignment", c_int), ("window_left", c_int64),
        ("window_right", c_int64), ("dropout_p", c_float), ("dropout_offset", c_uint32),
        ("dropout_seed", c_uint64), ("max_seqlen_q", c_int64), ("max_seqlen_k", c_int64),
        ("bias", TENSOR), ("slopes", TENSOR), ("sinks", TENSOR), ("cu_seqlens_q", TENSOR),
        ("cu_seqlens_k", TENSOR), ("seqlens_k", TENSOR),
    ]


class Gradients(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("dout", TENSOR), ("dlse", TENSOR), ("dq", TENSOR), ("dk", TENSOR),
        ("dv", TENSOR), ("dbias", TENSOR), ("dslopes", TENSOR), ("dsinks", TENSOR),
    ]


class Failed(Exception):
    """A call did not return ATTND_OK."""


class Client:
    """One connection. Tensors are torch tensors; on a GPU, calls are ordered by a CUDA stream, given as
    an integer, and wait for nothing; others wait for their result."""

    def __init__(self, library, address):
        self.lib = ctypes.CDLL(library)
        self.lib.attnd_message.restype = c_char_p
        self.lib.attnd_status_name.restype = c_char_p
        self.lib.attnd_close.restype = None
        self.lib.attnd_free.restype = None
        self.handle = c_void_p()
        options = OpenOptions(
            ctypes.sizeof(OpenOptions), address.encode(), b"compare_torch", 20 * 10**9)
        self.check(self.lib.attnd_open(byref(options), byref(self.handle)))

    def close(self):
        self.lib.attnd_close(self.handle)

    def check(self, status):
        if status != 0:
            name = self.lib.attnd_status_name(status).decode()
            raise Failed(f"{name}: {self.lib.attnd_message().decode()}")

    def alloc(self, size):
        memory = c_void_p()
        self.check(self.lib.attnd_alloc(self.handle, c_size_t(size), byref(memory)))
        return memory

    def free(self, memory):
        self.lib.attnd_free(self.handle, memory)

    def wait(self, ticket):
        self.check(self.lib.attnd_wait(self.handle, ticket, c_int64(FOREVER)))

    def trim(self):
        self.check(self.lib.attnd_trim(self.handle, c_int64(20 * 10**9)))

    def forward(self, tensors, options, stream=None):
        ticket = c_uint64()
        parts = [describe(tensors.get(name)) for name in ("q", "k", "v", "out", "lse")]
        self.check(self.lib.attnd_forward(
            self.handle, c_void_p(stream), *parts, byref(options), byref(ticket)))
        if stream is None:
            self.wait(ticket)
        return ticket

    def backward(self, tensors, options, stream=None):
        ticket = c_uint64()
        parts = [describe(tensors.get(name)) for name in ("q", "k", "v", "out", "lse")]
        names = [name for name, _ in Gradients._fields_[1:]]
        gradients = Gradients(
            ctypes.sizeof(Gradients), *[describe(tensors.get(name)) for name in names])
        self.check(self.lib.attnd_backward(
            self.handle, c_void_p(stream), *parts, byref(gradients), byref(options), byref(ticket)))
        if stream is None:
            self.wait(ticket)
        return ticket


def describe(tensor):
    """A pointer to a DLTensor over the torch tensor, which must stay alive; None gives NULL."""
    if tensor is None:
        return TENSOR()
    kinds = {"float32": (2, 32), "float16": (2, 16), "bfloat16": (4, 16), "int32": (0, 32)}
    code, bits = kinds[str(tensor.dtype).removeprefix("torch.")]
    extents = (c_int64 * tensor.dim())(*tensor.shape)
    strides = (c_int64 * tensor.dim())(*tensor.stride())
    device = DLDevice(2, tensor.device.index) if tensor.is_cuda else DLDevice(1, 0)
    described = DLTensor(
        tensor.data_ptr(), device, tensor.dim(), DLDataType(code, bits, 1), extents,
        strides, 0)
    return ctypes.pointer(described)


def make_options(**values):
    options = Options(ctypes.sizeof(Options))
    options.window_left = UNBOUNDED
    options.window_right = UNBOUNDED
    for name, value in values.items():
        setattr(options, name, value)
    return options
