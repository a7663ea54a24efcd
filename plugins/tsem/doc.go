// Package tsem is the engine that models a VM as TSEM and Quixote do: every
// event becomes a security state point, a model is the set of points that a
// workload has shown, and once it is sealed a point that is not in it is a
// violation.
//
// A mapping makes points of events, and every model names its own. "full"
// (docs/TSEM-FULL.md) is that of new models: what says who acts, on what and
// how, counts. "quixote" is the one that Quixote's userspace computes, bit for
// bit where that is defined, so that models and measurements can be exchanged.
// Where Quixote hashes a port that it never sets, of AF_INET6 addresses and of
// socket_accept, the port is 0. What its events cannot say is said in their
// words: a file that the guest's kernel could not digest has a digest of its
// own (DigestFailed), so that failing never equals anything that was learned
// from success; a path that was cut, or is gone, or cannot be reached is no
// longer the plain path. TASK_IDs have the kernel's form over Quixote's digests,
// in both.
//
// A VM's model learns from its first event. Seal ends that; Learn begins it
// again, and then points that came as violations are learned when seen again. A
// model goes out and in as a file (see Model.AppendText).
//
// What crosses to Quixote as text, events and model files, is quixote's.
package tsem
