-- Finalisers that look around: args are how many proxies each run makes, and how the collector's steps are set, or
-- "thread", for a finaliser that makes a thread. It says how many of them have ended in all, and how many of these saw
-- another signal blocked than SIGTERM, which the program blocks itself (host -p).
--
-- The last one of a run's, or with a third argument the first, sends SIGTERM, by which the wait ends.
--
-- No allocation makes the collector run here: after a full cycle with this pause the next begins only when a thousand
-- times as much is allocated. So whatever ends is found during waits.

local _, run, n, setting, first = ...
local ffi = require("ffi")

if run == 0 then
  ffi.cdef([[
    typedef struct { uint64_t words[16]; } signals;
    int sigprocmask(int, const signals *, signals *); int kill(int, int); int getpid(void);
    void scribble(uint64_t *);
  ]])
  proxies = { made = 0, ended = 0, blocked = 0, word = ffi.new("uint64_t[1]"), mask = ffi.new("signals") }
  if setting ~= "thread" then collectgarbage("setstepmul", tonumber(setting)) end
end
local p, TERM = proxies, 15

local function finaliser()
  p.ended = p.ended + 1
  ffi.C.sigprocmask(0, nil, p.mask)
  if bit.band(p.mask.words[0], bit.bnot(bit.lshift(1ULL, TERM - 1))) ~= 0 then p.blocked = p.blocked + 1 end
  if setting == "thread" then
    if p.ended == 1 then ffi.C.scribble(p.word) end
  elseif p.ended == (first and p.made - n + 1 or p.made) then
    ffi.C.kill(ffi.C.getpid(), TERM)
  end
end

local said = ("%d ended, %d saw signals blocked"):format(p.ended, p.blocked)
if setting ~= "thread" then
  assert(collectgarbage("setstepmul", tonumber(setting)) == tonumber(setting), "stepmul is not as it was")
end
collectgarbage("setpause", 100000)
collectgarbage()
collectgarbage()
local garbage = {}
for i = 1, 10000 do garbage[i] = { i, "garbage " .. i } end
for _ = 1, tonumber(n) do getmetatable(newproxy(true)).__gc = finaliser end
p.made = p.made + n
return said
