"""The messages of proto/inference/open_inference.proto, in a descriptor pool of their own.

Written by hand: what protoc writes would enter protobuf's default pool, where tritonclient and kserve have registered messages
of the same names, and the second to be imported would fail. `make proto` writes the descriptors and the types beside this file.
"""

from importlib import resources

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

POOL = descriptor_pool.DescriptorPool()

_files = descriptor_pb2.FileDescriptorSet.FromString(resources.files(__package__).joinpath("open_inference.binpb").read_bytes())
for _file in _files.file:
    POOL.AddSerializedFile(_file.SerializeToString())
DESCRIPTOR = POOL.FindFileByName(_files.file[-1].name)
globals().update({name: message_factory.GetMessageClass(kind) for name, kind in DESCRIPTOR.message_types_by_name.items()})
