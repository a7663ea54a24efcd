package tsem

import (
	"encoding/hex"
	"fmt"
)

func hexOf(v ID) string { return hex.EncodeToString(v[:]) }

func parseID(s string) (ID, error) {
	var v ID
	if len(s) != 2*len(v) {
		return ID{}, fmt.Errorf("%d hex digits, want %d", len(s), 2*len(v))
	}
	_, err := hex.Decode(v[:], []byte(s))
	return v, err
}
