-- LuaJIT's string.buffer: text put together, and values written and read back.
local _, _, n = ...
local buffer = require("string.buffer")
local sum = 0
local out = buffer.new()
for i = 1, tonumber(n or 60000) do
  out:reset()
  for k = 1, 200 do out:put("key", k, "=", i * k, ";") end
  sum = sum + #out:get(1000) + #out:get()
  local coded = buffer.encode({ id = i, list = { 1, 2, 3, { "x", "y" } }, name = "name " .. i, more = ("z"):rep(i % 300) })
  local back = buffer.decode(coded)
  sum = sum + back.list[3] + #back.more + #coded
  local large = buffer.new()
  for k = 1, 40 do large:put(coded, k) end
  sum = sum + #large
end
return tostring(sum)
