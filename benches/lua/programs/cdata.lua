-- FFI: structures boxed by the thousand, arrays that live a moment, and one that lives.
local _, _, n = ...
local ffi = require("ffi")
ffi.cdef([[ typedef struct { double x, y; } bench_point; typedef struct { bench_point at[3]; int id; } bench_triangle; ]])
local triangle = ffi.typeof("bench_triangle")
local kept, sum = {}, 0
for i = 1, tonumber(n or 8000000) do
  local t = ffi.new(triangle)
  t.id = i
  for k = 0, 2 do t.at[k].x, t.at[k].y = i + k, i - k end
  kept[i % 5000 + 1] = t
  local other = kept[(i * 7) % 5000 + 1]
  if other then sum = sum + other.at[1].x - other.at[2].y end
  if i % 100 == 0 then
    local array = ffi.new("int32_t[?]", i % 5000 + 10)
    array[9] = i
    sum = sum + array[9]
  end
end
return ("%d"):format(sum)
