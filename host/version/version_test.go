package version

import (
	"runtime/debug"
	"testing"
)

func TestOf(t *testing.T) {
	vcs := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"}}
	for want, info := range map[string]*debug.BuildInfo{
		"v1.2.3":                   {Main: debug.Module{Version: "v1.2.3"}, Settings: vcs},
		"devel-0123456789ab-dirty": {Main: debug.Module{Version: "(devel)"}, Settings: vcs},
		"devel-0123456789ab":       {Settings: vcs[:1]},
		"devel":                    {},
	} {
		if got := of(info); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
