// SPDX-License-Identifier: Apache-2.0

package bpf

import "hash/fnv"

// FurtherBuild tells one compilation of the further hooks' programs from another.
func FurtherBuild() uint64 {
	h := fnv.New64a()
	_, _ = h.Write(_FurtherBytes) // never an error
	return h.Sum64()
}
