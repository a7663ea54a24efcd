// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/outguard/outguard/vsockproto"
)

func TestSumOfAProgram(t *testing.T) {
	broken := errors.New("broken")
	l := looker{left: 10, patience: &patience{stall: time.Minute, most: 1, until: time.Now().Add(time.Hour)}}
	for _, c := range []struct {
		from string
		size int64
		want error
		left int64
	}{
		{"four", 4, nil, 6},
		{"seven..", 7, vsockproto.ErrTooLong, 6}, // nothing of it is read
		{"two", 2, vsockproto.ErrInvalid, 3},     // it has grown
		{"o", 2, vsockproto.ErrInvalid, 2},       // it has shrunk
		{"", 0, nil, 2},
		{"it", 2, nil, 0},
		{"", 0, nil, 0},
		{"x", 1, vsockproto.ErrTooLong, 0},
	} {
		sum, err := l.sum(strings.NewReader(c.from), c.size)
		if !errors.Is(err, c.want) || l.left != c.left {
			t.Errorf("%q of %d: %v, %d left; want %v, %d", c.from, c.size, err, l.left, c.want, c.left)
		}
		if want := sha256.Sum256([]byte(c.from)); err == nil && string(sum) != string(want[:]) {
			t.Errorf("%q: %x", c.from, sum)
		}
	}
	l.left = 10
	if _, err := l.sum(iotest.ErrReader(broken), 4); !errors.Is(err, broken) {
		t.Error(err)
	}
}
