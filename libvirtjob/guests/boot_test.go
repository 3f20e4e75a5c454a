//go:build cgo

package guests_test
import "testing"
func TestBoot(t *testing.T) {
	g := needGuest(t)
	t.Log(g.write("/vda/a", 1), g.frozen(), g.run("mount; ps; cat /tmp/agent; free"))
	g.wantThawed()
}
