package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/outguard/outguard/host/api"
)

const untilHelp = "up to this `time`, written as with --since"

const sinceHelp = "from this `time` on: 10m, 2h or 3d ago, or 2006-01-02T15:04:05Z, or local 2006-01-02[ 15:04[:05]] or 15:04[:05]"

// since reads a time that people write, for the API.
func since(s string, now time.Time) (string, error) { return when("since", s, now) }

// until is since for the end of a time.
func until(s string, now time.Time) (string, error) { return when("until", s, now) }

func when(flag, s string, now time.Time) (string, error) {
	if s == "" {
		return "", nil
	}
	t, err := parseSince(s, now)
	if err != nil {
		return "", usageError{fmt.Errorf("--%s %q: write 10m, 2h, 3d, or a time such as 2006-01-02T15:04:05Z, or local 2006-01-02 15:04 or 15:04", flag, s)}
	}
	return api.FormatTime(t), nil
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			y, m, d := now.Date()
			return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, now.Location()), nil
		}
	}
	return time.Time{}, fmt.Errorf("no time")
}
